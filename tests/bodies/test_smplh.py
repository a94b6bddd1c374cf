"""SMPL-H from files: genders, batches, and what is said of files that are something else."""

from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from mega.bodies import SMPLHBody, smplh
from mega.bodies.smplh import gender_name, read_regressor, read_smplh

PARENTS = [2**32 - 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
PARENTS += [20, 22, 23, 20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35]
PARENTS += [21, 37, 38, 21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50]


def arrays(seed: int) -> dict[str, np.ndarray]:
    """A body of random numbers with SMPL-H's sizes."""
    rng = np.random.default_rng(seed)
    regressor = rng.dirichlet(np.full(6890, 0.01), 52)
    return {
        "v_template": rng.normal(size=(6890, 3)),
        "shapedirs": 0.01 * rng.normal(size=(6890, 3, 16)),
        "posedirs": np.zeros((6890, 3, 459)),
        "J_regressor": regressor,
        "weights": rng.dirichlet(np.full(52, 0.1), 6890),
        "kintree_table": np.array([PARENTS, np.arange(52)], np.uint32),
        "f": rng.integers(0, 6890, (13776, 3)).astype(np.uint32),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("body_models")
    for seed, gender in enumerate(("neutral", "m", "f")):
        (folder / "smplh" / gender).mkdir(parents=True)
        np.savez(folder / "smplh" / gender / "model.npz", **arrays(seed))
    np.save(folder / "J_regressor_24.npy", arrays(0)["J_regressor"])
    np.save(folder / "J_regressor_h36m.npy", np.full((17, 6890), 1 / 6890))
    return folder


def people(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(n, 21, 3, generator=generator), torch.randn(n, 10, generator=generator)


def test_meshes_are_canonical_and_a_batch_may_mix_genders(folder: Path) -> None:
    body = SMPLHBody(folder)
    pose, betas = people(4)
    genders = ["female", "m", "NEUTRAL", "f"]
    mixed = body(pose, betas, genders)
    assert mixed.mean(1).abs().max() < 1e-5
    for i, gender in enumerate(genders):
        torch.testing.assert_close(mixed[i], body(pose[i : i + 1], betas[i : i + 1], gender)[0])
    assert (mixed[0] - body(pose, betas, "m")[0]).abs().max() > 0.1


def test_a_joint_turns_what_hangs_on_it(folder: Path) -> None:
    """With the weights of one vertex given to the root or to a hand, turning an elbow moves the second alone."""
    body = SMPLHBody(folder)
    model = body.gender("neutral")
    weights = torch.zeros(2, 52)
    weights[0, 0] = weights[1, 21] = 1  # root, right wrist
    before = model.weights[:2].clone()
    model.weights[:2] = weights
    try:
        full, betas = torch.zeros(2, 52, 3), torch.zeros(2, 10)
        full[1, 19] = torch.tensor([0.0, 0.0, 1.0])  # right elbow
        rest, turned = model.vertices(full, betas)
    finally:
        model.weights[:2] = before
    torch.testing.assert_close(rest[0], turned[0])
    elbow = model.regressor[19] @ model.v_template
    expected = roma.rotvec_to_rotmat(full[1, 19]) @ (rest[1] - elbow) + elbow
    torch.testing.assert_close(turned[1], expected, atol=1e-5, rtol=0)


def test_each_gender_is_read_once(folder: Path, monkeypatch) -> None:
    smplh._read_gender.cache_clear()
    read = []
    monkeypatch.setattr(smplh, "read_smplh", lambda path: read.append(path.parent.name) or read_smplh(path))
    pose, betas = people(2)
    for _ in range(3):
        SMPLHBody(folder)(pose, betas, ["m", "neutral"])
    assert sorted(read) == ["m", "neutral"]


def test_unknown_gender_is_refused() -> None:
    assert [gender_name(g) for g in ("m", "F", " male ", "neutral")] == ["male", "female", "male", "neutral"]
    with pytest.raises(ValueError, match="'x' is none of"):
        gender_name("x")


def test_regressors(folder: Path, tmp_path: Path) -> None:
    cut = read_regressor(folder / "J_regressor_24.npy", 24)
    whole = torch.from_numpy(np.load(folder / "J_regressor_24.npy")).float()
    torch.testing.assert_close(cut, whole[[*range(22), 22, 37]])
    np.save(tmp_path / "turned.npy", np.zeros((6890, 24)))
    with pytest.raises(ValueError, match=r"turned\.npy is transposed"):
        read_regressor(tmp_path / "turned.npy", 24)
    np.save(tmp_path / "turned.npy", np.zeros((6890, 52)))  # of SMPL-H
    with pytest.raises(ValueError, match=r"turned\.npy is transposed.*expected \(24, 6890\)"):
        read_regressor(tmp_path / "turned.npy", 24)
    np.save(tmp_path / "other.npy", np.zeros((19, 6890)))
    with pytest.raises(ValueError, match=r"other\.npy has shape \(19, 6890\), expected \(17, 6890\)"):
        read_regressor(tmp_path / "other.npy", 17)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as an array"):
        read_regressor(tmp_path / "objects.npy", 17)
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, J_regressor=np.zeros((24, 6890)))
    with pytest.raises(
        ValueError, match=r"archive\.npy cannot be read as an array \(\.npy\): it is arrays of numpy \(\.npz\)"
    ):
        read_regressor(tmp_path / "archive.npy", 24)
    (tmp_path / "empty.npy").touch()
    with pytest.raises(ValueError, match=r"empty\.npy cannot be read"):
        read_regressor(tmp_path / "empty.npy", 24)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"folder\.npy is a folder, but a file is expected"):
        read_regressor(tmp_path / "folder.npy", 24)
    with pytest.raises(FileNotFoundError, match=r"J_regressor_h36m\.npy is missing: .*mmhuman3d"):
        read_regressor(tmp_path / "J_regressor_h36m.npy", 17)


def test_other_bodies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    content = arrays(0)
    content["weights"] = content["weights"][:, :24]
    np.savez(path, **content)
    with pytest.raises(ValueError, match=r"weights has shape \(6890, 24\).*It looks like SMPL"):
        read_smplh(path)
    for joints, name in ((24, "SMPL"), (55, "SMPL-X")):
        other = {"weights": (joints,), "kintree_table": (joints,), "posedirs": (3, 9 * (joints - 1))}
        shapes = {k: (*content[k].shape[:1], *v) for k, v in other.items()} | {"J_regressor": (joints, 6890)}
        np.savez(path, **content | {k: np.zeros(shape, np.float32) for k, shape in shapes.items()})
        with pytest.raises(ValueError, match=rf"model\.npz is not an SMPL-H body: .* It looks like {name}, which"):
            read_smplh(path)
    np.savez(path, f=np.array([{}]))  # an object, which would have to be unpickled
    whole = path.read_bytes()
    for wrong in (b"PK\x03\x04 cut short", b"", whole, whole[: len(whole) // 2]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"model\.npz cannot be read as arrays \(\.npz\)"):
            read_smplh(path)
    with path.open("wb") as file:
        np.save(file, content["v_template"])
    with pytest.raises(ValueError, match=r"model\.npz cannot be read as arrays \(\.npz\)"):
        read_smplh(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"model\.npz is a folder, but a file is expected"):
        read_smplh(path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        read_smplh(tmp_path / "gone.npz")
