"""Bodies out of the prior: given parts stay, parts are where they are said to be, and figures tell good from bad."""

import copy
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mega.bodies import KEYPOINTS
from mega.bodies.parts import PARTS, token_centres, token_parts, vertex_parts
from mega.bodies.smplh import SMPL_JOINTS
from mega.checkpoints import load_vqmae, save_model
from mega.generation import figures_table, measure_bodies, read_body_tokens
from mega.model import VQMAE
from mega.sampling import sample_unconditional
from mesh_vq_vae import MeshVQVAE
from tests.helpers.toy import N_CODES, toy_tokenizer

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "checkpoint" / "anny_lite"


@pytest.fixture(scope="module")
def anny() -> tuple[MeshVQVAE, VQMAE]:
    return MeshVQVAE.load(WEIGHTS / "tokenizer.safetensors"), load_vqmae(WEIGHTS / "vqmae.safetensors")[0]


@pytest.fixture(scope="module")
def drawn(anny) -> Tensor:
    return sample_unconditional(anny[1], 6, steps=10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def decoded(anny, drawn) -> Tensor:
    return anny[0].decode(drawn)


# --- parts


@pytest.mark.parametrize("part", PARTS)
def test_tokens_of_a_part_move_that_part(anny, drawn, decoded, part: str) -> None:
    """A vertex of the part moves more than one of any other part; of a limb, the others hardly move."""
    tokenizer = anny[0]
    changed = torch.where(token_parts(tokenizer) == PARTS.index(part), drawn.roll(1, dims=0), drawn)
    moved = (tokenizer.decode(changed[:3]) - decoded[:3]).norm(dim=-1).mean(dim=0)  # (V,)
    parts = vertex_parts(tokenizer)
    by_part = torch.stack([moved[parts == i].mean() for i in range(len(PARTS))])
    assert by_part.argmax() == PARTS.index(part)
    if part not in ("head", "torso"):
        assert moved[parts == PARTS.index(part)].sum() > 0.9 * moved.sum()


def test_parts_mirror_each_other(anny) -> None:
    """The template is symmetric, so left and right have as many vertices, on the side that they are named after."""
    tokenizer = anny[0]
    parts = vertex_parts(tokenizer)
    counts = dict(zip(PARTS, torch.bincount(parts, minlength=len(PARTS)).tolist(), strict=True))
    assert all(counts.values())
    for limb in ("arm", "leg"):
        assert counts[f"left_{limb}"] == pytest.approx(counts[f"right_{limb}"], rel=0.02)
        assert (tokenizer.template[parts == PARTS.index(f"left_{limb}"), 0] > 0).all()
    mean_height = [tokenizer.template[parts == PARTS.index(part), 1].mean() for part in ("head", "torso", "left_leg")]
    assert mean_height == sorted(mean_height, reverse=True)


def test_token_centres_are_where_tokens_act(anny, drawn, decoded) -> None:
    """The vertex of a token's centre moves with its code more than nine in ten of all do, for most tokens."""
    tokenizer = anny[0]
    centres = token_centres(tokenizer)
    assert centres.unique().shape == (tokenizer.n_tokens,)
    places = (drawn[0] != drawn[1]).nonzero()[:, 0][::8]
    changed = drawn[:1].repeat(len(places), 1)
    changed[range(len(places)), places] = drawn[1, places]
    moved = (tokenizer.decode(changed) - decoded[:1]).norm(dim=-1)  # (S, V)
    at_centre = moved.gather(1, centres[places][:, None])
    assert ((moved < at_centre).float().mean(dim=1) > 0.9).float().mean() > 0.8


def smpl_like(tokenizer: MeshVQVAE) -> MeshVQVAE:
    """The same body with SMPL's 24 joints, as far as they follow from COCO's keypoints."""
    rows = {name: tokenizer.keypoint_regressor[i] for i, name in enumerate(KEYPOINTS)}
    rows["head"] = (rows["left_ear"] + rows["right_ear"]) / 2
    for side in ("left", "right"):
        rows[f"{side}_foot"] = rows[f"{side}_big_toe"]
    elsewhere = torch.zeros_like(rows["head"])  # a point of no matter here
    other = copy.deepcopy(tokenizer)
    names = ("pelvis", *SMPL_JOINTS, "left_hand", "right_hand")
    other.keypoint_regressor = torch.stack([rows.get(name, elsewhere) for name in names])
    return other


def test_parts_by_smpl_joints(anny) -> None:
    tokenizer = anny[0]
    same = vertex_parts(smpl_like(tokenizer)) == vertex_parts(tokenizer)
    assert same.float().mean() > 0.97


def test_other_keypoints_are_refused(anny) -> None:
    other = copy.deepcopy(anny[0])
    other.keypoint_regressor = other.keypoint_regressor[:17]
    with pytest.raises(ValueError, match="has 17 keypoints"):
        vertex_parts(other)
    other.keypoint_regressor = None
    with pytest.raises(ValueError, match="stores no template and keypoints"):
        token_parts(other)


def test_what_is_given_matters(anny, drawn) -> None:
    """Given the rest of a body, the prior's likeliest leg is more like the body's own than like another body's."""
    tokenizer, model = anny
    hidden = token_parts(tokenizer) == PARTS.index("left_leg")
    right = 0
    for own, other in zip(drawn, drawn.roll(1, dims=0), strict=True):
        leg = sample_unconditional(model, 1, steps=1, temperature=0.0, given=(own, hidden))[0, hidden]
        right += int((leg == own[hidden]).sum()) > int((leg == other[hidden]).sum())
    assert right >= 4


# --- figures


def test_figures_tell_bodies_from_noise(anny, drawn, decoded) -> None:
    tokenizer, model = anny
    noise = torch.randint(tokenizer.codebook_size, (3, tokenizer.n_tokens), generator=torch.Generator().manual_seed(0))
    bodies = measure_bodies(drawn[:3], decoded[:3], tokenizer, model)
    nonsense = measure_bodies(noise, tokenizer.decode(noise), tokenizer, model)
    for name in ("asymmetry_percent", "stretched_edges_percent", "reencoding_mm", "cross_entropy_nats"):
        assert bodies[name] < 0.7 * nonsense[name], name
    assert bodies["bodies"] == 3


def test_figures_of_known_bodies(anny, drawn) -> None:
    """The template in three sizes."""
    tokenizer, model = anny
    sizes = [1, 1.1, 2.2]
    bodies = torch.stack([size * tokenizer.template for size in sizes])
    figures = measure_bodies(drawn[:3], bodies, tokenizer, model)
    assert figures["stretched_edges_percent"] == pytest.approx(100 / 3)
    assert figures["limb_spread_percent"] == pytest.approx(100 * np.std(sizes, ddof=1) / np.mean(sizes), rel=1e-3)
    assert figures["asymmetry_percent"] < 0.2
    mean_radius = 1000 * tokenizer.template.norm(dim=-1).mean().item()
    assert figures["mean_pairwise_mm"] == pytest.approx(mean_radius * (0.1 + 1.1 + 1.2) / 3, rel=1e-3)


def test_a_single_body_has_no_spread(anny, drawn, decoded) -> None:
    figures = measure_bodies(drawn[:1], decoded[:1], *anny)
    assert figures["mean_pairwise_mm"] is figures["limb_spread_percent"] is figures["mean_pairwise_head_mm"] is None
    assert len(figures_table({"drawn": figures}).splitlines()) == 14


# --- bodies from a file


def test_bodies_from_tokens_and_from_vertices(anny, drawn, decoded, tmp_path) -> None:
    """Vertices are encoded, wherever they are centred; tokens are taken first."""
    tokenizer = anny[0]
    np.savez(tmp_path / "both.npz", tokens=drawn.numpy().astype(np.int16), vertices=np.zeros((6, 5, 3)))
    assert torch.equal(read_body_tokens(tmp_path / "both.npz", tokenizer, limit=2), drawn[:2])
    centred = decoded[:2] - decoded[:2].mean(dim=1, keepdim=True)
    np.savez(tmp_path / "vertices.npz", vertices=centred.numpy() + np.float32(0.5))
    read = read_body_tokens(tmp_path / "vertices.npz", tokenizer)
    assert (read == tokenizer.encode(centred)).float().mean() > 0.95


WRONG_FILES = {
    "missing": (None, "is missing"),
    "empty": ({}, "is an archive .* without content"),
    "other arrays": ({"poses": np.zeros((1, 3))}, "holds neither tokens nor vertices"),
    "other": ({"tokens": np.zeros((2, 54), int)}, r"are int64 \(2, 54\), but"),
    "codes": ({"tokens": np.full((2, 99), 512)}, r"are 512\.\.512, but this tokenizer has 512 codes"),
    "mesh": ({"vertices": np.zeros((2, 6890, 3))}, r"have shape \(2, 6890, 3\)"),
    "pickle": ({"tokens": np.array([{}])}, "cannot be read as"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_named(anny, tmp_path, name: str) -> None:
    arrays, message = WRONG_FILES[name]
    path = tmp_path / f"{name}.npz"
    if arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_body_tokens(path, anny[0])
    assert str(path) in str(error.value)


# --- generate.py


@pytest.fixture
def generate(tmp_path, monkeypatch, capsys):
    """generate("n=2", …) -> (exit status, stdout, stderr), with the weights that come with the project."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["generate.py", f"output={tmp_path / 'out'}", "steps=3", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "generate.py"), run_name="__main__")
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


def test_completions_of_a_file(generate, anny, drawn, tmp_path) -> None:
    tokenizer = anny[0]
    np.savez(tmp_path / "tokens.npz", tokens=drawn.numpy().astype(np.int16))
    status, said, errors = generate("given=[left_leg,torso]", f"source={tmp_path / 'tokens.npz'}", "person=3", "n=3")
    assert status == 0, errors
    assert said.startswith(f"3 bodies with left_leg, torso given in {tmp_path / 'out'}/, ")
    kept = np.isin(token_parts(tokenizer), [PARTS.index("left_leg"), PARTS.index("torso")])
    with np.load(tmp_path / "out" / "bodies.npz") as file:
        assert (file["given"] == kept).all()
        assert (file["source_tokens"] == drawn[3].numpy()).all()
        assert (file["tokens"][:, kept] == drawn[3].numpy()[kept]).all()
        assert (file["tokens"][:, ~kept] != drawn[3].numpy()[~kept]).any(axis=1).all()
        np.testing.assert_allclose(file["vertices"], tokenizer.decode(torch.from_numpy(file["tokens"])), atol=1e-5)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())["drawn"]
    assert figures["mean_pairwise_left_leg_mm"] < 0.5 * figures["mean_pairwise_right_leg_mm"]
    assert {"bodies.png", "body_00.glb", "body_02.glb"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_the_source_is_what_is_drawn_without_parts(generate, tmp_path) -> None:
    status, said, errors = generate("n=3", "seed=5")
    assert status == 0, errors
    with np.load(tmp_path / "out" / "bodies.npz") as file:
        free = file["tokens"]
        assert "given" not in file.files
    np.savez(tmp_path / "free.npz", tokens=free)
    status, said, errors = generate("n=3", "seed=5", "given=head", "person=2", f"reference={tmp_path / 'free.npz'}")
    assert status == 0, errors
    with np.load(tmp_path / "out" / "bodies.npz") as file:
        assert (file["source_tokens"] == free[2]).all()
    assert said.splitlines()[1].split() == ["drawn", "reference"]
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["reference"]["bodies"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("given=nose",), "must be a list of head | torso | left_arm"),
        (("given=[" + ",".join(PARTS) + "]",), "nothing to draw"),
        (("source=x.npz",), "source requires the parts of the body to keep"),
        (("given=head", "person=4", "n=2"), "person=4 does not exist: the set drawn with n=2 seed=0 has 2 bodies"),
        (("given=head", "source=nowhere.npz"), "nowhere.npz is missing"),
        (("given=head", "person=-1"), "person=-1"),
    ],
)
def test_wrong_options_are_explained(generate, arguments, message: str) -> None:
    status, _, errors = generate(*arguments)
    assert status == 1
    assert message in errors


def test_a_toy_tokenizer_without_a_part_says_so(generate, tmp_path) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.keypoint_regressor[:] = tokenizer.keypoint_regressor[:1]  # all bones are one point, so all is torso
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    size = {"n_tokens": tokenizer.n_tokens, "codebook_size": N_CODES, "dim": 32, "encoder_depth": 1}
    size |= {"encoder_heads": 2, "decoder_depth": 1, "decoder_heads": 2}
    save_model(VQMAE(**size), tmp_path / "vqmae.safetensors", {"model": size})
    files = f"tokenizer_weights={tmp_path}/tokenizer.safetensors", f"pretrained={tmp_path}/vqmae.safetensors"
    status, _, errors = generate("given=head", *files)
    assert status == 1
    assert f"0 of the {tokenizer.n_tokens} tokens belong to head" in errors
