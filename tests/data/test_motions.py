"""Motions: reading and packing the user's files, splits, frames, and the two published trainings on them."""

import json
import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.data import MotionDataset, MotionMeshData, Motions, MotionTokenData
from mega.data.motions import DEFAULT_FPS, motion_files, read_motion
from mega.model import VQMAE
from tests.helpers.fake_files import (
    ROOT,
    TEMPLATE,
    composed,
    needs_template,
    write_animations,
    write_body,
    write_released,
)
from tests.slow.kill_trainings import differences
from tools.check_setup import check_setup

INPUTS = TEMPLATE.parents[1] / "inputs" / "motions"
GOOD = {"poses": np.zeros((3, 72)), "betas": np.zeros(10), "gender": "neutral"}
SHARES = {"val": 0.2, "test": 0.2}
# What makes the published setups small enough for tests.
SMALL_TOKENIZER = (
    "tokenizer.channels=[4,4,4,4,4,4,9,4,4,4,4,4,4,3]",
    "tokenizer.n_bases=[2,0,2,0,2,0,2,2,0,2,0,2,0,2]",
)
SMALL_PRIOR = ("model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1")


@pytest.fixture
def animations(tmp_path) -> Path:
    return write_animations(tmp_path)


@pytest.fixture
def motions(animations, tmp_path) -> Motions:
    return Motions.load(animations, tmp_path / "cache")


def test_frames_are_those_of_the_files(animations, motions) -> None:
    """Pose without the root, ten betas and the body's own gender, whichever form the file has."""
    assert len(motions) == 12
    frames = MotionDataset(motions)
    assert len(frames) == sum(20 + i for i in range(12))
    start = 0
    for motion in motions.motions:
        with np.load(animations / motion.path) as file:
            poses, betas, gender = file["poses"], file["betas"], file["gender"].item()
        for nth in (0, 17, len(poses) - 1):
            item = frames[start + nth]
            np.testing.assert_allclose(item["pose"], poses[nth, 3:66].reshape(21, 3), rtol=1e-6)
            np.testing.assert_allclose(item["betas"], betas[:10], rtol=1e-6)
            assert GENDERS[item["gender"]][0] == gender[0]
        start += len(poses)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gender": "robot"}, "'robot' is none of"),
        ({"poses": np.zeros((3, 63))}, r"shape \(3, 63\) of float64, expected numbers \(3, 66\)"),
        ({"poses": np.zeros((0, 72))}, "poses holds no frames"),
        ({"poses": np.full((3, 72), np.nan)}, "poses is not finite"),
        ({"betas": np.zeros(0)}, r"betas has shape \(0,\)"),
        ({"betas": np.zeros((3, 10))}, r"betas has shape \(3, 10\)"),
        ({"betas": np.array(["1"] * 10)}, r"betas has shape \(10,\) of <U1"),
        ({"mocap_framerate": 0}, "mocap_framerate is 0, expected 1 to 1000 frames per second"),
        ({"mocap_frame_rate": -30.0}, "mocap_frame_rate is -30.0, expected 1 to 1000"),
        ({"fps": np.nan}, "fps is nan, expected 1 to 1000"),
        ({"fps": np.array([np.inf])}, "fps is inf, expected 1 to 1000"),
        ({"mocap_framerate": 1e6}, r"mocap_framerate is 1000000\.0, expected 1 to 1000"),
        ({"mocap_framerate": "30 Hz"}, "mocap_framerate is 30 Hz, expected 1 to 1000"),
        ({"mocap_framerate": np.zeros(3)}, r"mocap_framerate has shape \(3,\), expected one number"),
        ({"fps": 30, "mocap_framerate": 120.0}, "mocap_framerate and fps differ: 120 and 30 frames per second"),
        ({"betas": None}, "lacks betas"),
        ({"gender": np.array(["m", "f"])}, "expected one word"),
        ({"poses": np.array([{}])}, "the field poses holds objects other than numbers and text"),
    ],
)
def test_invalid_files_are_refused(tmp_path, change, reason) -> None:
    np.savez(tmp_path / "good.npz", **GOOD)
    assert read_motion(tmp_path / "good.npz")[0].shape == (3, 63)
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in (GOOD | change).items() if v is not None})
    with pytest.raises(ValueError, match=reason):
        read_motion(tmp_path / "bad.npz")
    motions = Motions.load(tmp_path, tmp_path / "cache")
    assert [motion.path for motion in motions.motions] == ["good.npz"]
    (problem,) = motions.problems
    assert problem.startswith(f"{tmp_path / 'bad.npz'}: ")


def test_shape_files_are_not_motions_whatever_the_folder_is_called(tmp_path) -> None:
    folder = tmp_path / "shape_study"
    (folder / "p" / "shape").mkdir(parents=True)
    for name in ("a", "p/shape/b", "p/my_shape"):
        np.savez(folder / f"{name}.npz", **GOOD)
    assert list(motion_files(folder)) == ["a.npz"]


def write_motion(path: Path, seconds: float = 10, rate: float = 30, **fields) -> None:
    """A motion as in AMASS, of which each frame holds its time in seconds; `fields` replace or add others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    poses = np.repeat(times[:, None], 156, axis=1)
    np.savez(path, **{"poses": poses, "betas": np.arange(16) / 10, "gender": "male", "trans": poses[:, :3]} | fields)


@pytest.mark.parametrize("name", ["mocap_framerate", "mocap_frame_rate", "fps"])
@pytest.mark.parametrize(
    "form", [np.array, lambda r: np.array([r]), lambda r: np.array(str(r).encode()), lambda r: np.array(r, object)]
)
def test_ten_seconds_are_as_many_frames_at_any_rate(tmp_path, name, form) -> None:
    """Whatever form the rate has in the file: a number, an array of one, bytes, an object."""
    for rate in (30, 120.0, 250):
        write_motion(tmp_path / f"{rate:03.0f}.npz", rate=rate, **{name: form(rate)})
    motions = Motions.load(tmp_path, tmp_path / "cache")
    assert motions.fps.tolist() == [30, 120, 250]
    for options, count in (({}, 300), ({"frames_per_second": 3}, 30), ({"frames_per_second": 7.5}, 75)):
        frames = MotionDataset(motions, **options)
        assert np.bincount(frames.motion).tolist() == [count] * 3
        times = np.array([frames[i]["pose"][0, 0] for i in range(len(frames))]).reshape(3, count)
        # At most one frame of the slowest motion apart.
        np.testing.assert_allclose(times, np.tile(np.arange(count) * 10 / count, (3, 1)), atol=1 / 30 + 1e-6)
    assert np.bincount(MotionDataset(motions, frames_per_second=np.inf).motion).tolist() == [300, 1200, 2500]
    assert np.bincount(MotionDataset(motions, frames_per_second=60).motion).tolist() == [300, 600, 600]


@pytest.mark.skipif(not INPUTS.is_dir(), reason=f"no {INPUTS}")
def test_given_motions_of_ten_seconds_are_as_many_frames(tmp_path) -> None:
    frames = MotionDataset(Motions.load(INPUTS, tmp_path))
    assert np.bincount(frames.motion).tolist() == [300] * 3


def test_every_frame_of_a_fast_motion_is_seen_over_the_epochs(tmp_path) -> None:
    write_motion(tmp_path / "a.npz", rate=250, fps=250)
    motions = Motions.load(tmp_path, tmp_path / "cache")
    epochs = [MotionDataset(motions, frames_per_second=30, epoch=e).frame for e in range(9)]
    assert {len(frame) for frame in epochs} == {300}
    assert set(np.concatenate(epochs)) == set(range(2500))
    # The published rule draws among all of them.
    drawn = [MotionDataset(motions, frames_per_file=1, epoch=e).frame.item() for e in range(400)]
    assert len(set(drawn)) > 300


def test_what_is_assumed_and_left_out_is_said_once(tmp_path) -> None:
    folder = tmp_path / "motions"
    for i, n in enumerate((10, 11, 16, 300, 4)):
        write_motion(folder / f"{i}.npz", betas=np.arange(n) + 1.0, fps=(30, 120)[i % 2])
    for i in range(7):
        write_motion(folder / "slow" / f"{i}.npz", rate=25)
        write_motion(folder / f"person_{i}" / "shape.npz")
    motions = Motions.load(folder, tmp_path / "cache", default_fps=25)
    slow = ", ".join(f"slow/{i}.npz" for i in range(5))
    shapes = ", ".join(f"person_{i}/shape.npz" for i in range(5))
    assert motions.notes == [
        f"12 motions in {folder}; frames per second (files): 30 (3), 120 (2)",
        "7 of them do not give their frame rate (mocap_framerate, mocap_frame_rate, fps): data.default_fps=25 is "
        f"assumed: {slow}, …",
        "betas (files): 11 (1), 16 (8), 300 (1); the first 10 are used, as many as the body has",
        "1 of them have fewer than 10 betas, the others are taken as 0: 4.npz",
        f"7 .npz files are left out because their path holds `shape`: {shapes}, … (all: python tools/prepare_data.py "
        f"bedlam_check dataset.animations={folder})",
    ]
    assert not motions.problems
    assert motions.fps.tolist() == [30, 120, 30, 120, 30] + [25] * 7
    for betas, n in zip(motions.betas, (10, 10, 10, 10, 4), strict=False):
        assert betas.tolist() == [*range(1, n + 1), *[0] * (10 - n)]
    # The default is not packed: another one counts at once.
    assert Motions.load(folder, tmp_path / "cache").fps.tolist() == [30, 120, 30, 120] + [30] * 8
    for rate in (0, np.nan, 1e6):
        with pytest.raises(ValueError, match=rf"data\.default_fps={rate}: give 1 to 1000"):
            Motions.load(folder, tmp_path / "cache", default_fps=rate)


def test_motions_packed_by_another_rule_are_packed_anew(tmp_path) -> None:
    folder, cache = tmp_path / "motions", tmp_path / "cache"
    write_motion(folder / "a.npz", rate=120, mocap_framerate=120.0)
    before = Motions.load(folder, cache)
    index = json.loads((cache / "index.json").read_text())
    for change in ({}, {"format": 1}):  # without a format: the version that read no rates
        old = {"poses": index["poses"], "motions": [dict(index["motions"][0])]} | change
        del old["motions"][0]["fps"]
        (cache / "index.json").write_text(json.dumps(old))
        assert Motions.load(folder, cache).fps.tolist() == [120]
    # Nor does a cache of tokens fit any longer if the rate in a file changes.
    write_motion(folder / "a.npz", rate=120, mocap_framerate=240.0)
    after = Motions.load(folder, cache)
    assert after.fps.tolist() == [240]
    items = [MotionDataset(motions, limit=20) for motions in (before, after)]
    assert len({frames.fingerprint(slice(None)) for frames in items}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_linked_folders_and_names_of_any_kind_are_found(tmp_path) -> None:
    folder = tmp_path / "motions"
    write_motion(tmp_path / "elsewhere" / "deep" / "b.npz", fps=30)
    write_motion(folder / "a.npz", fps=30)
    (folder / "a.npz").rename(folder / "A.NPZ")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    odd = os.fsdecode(b"Fotos_Jos\xe9.npz")  # a name that is not UTF-8
    write_motion(folder / odd, fps=30)
    for _ in range(2):
        motions = Motions.load(folder, tmp_path / "cache")
        assert [motion.path for motion in motions.motions] == ["A.NPZ", odd, "link/deep/b.npz"]
        assert len(motions.split("train", {"val": 0, "test": 0})) == 3
        assert not motions.problems


def test_the_source_of_missing_motions_is_reported(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing: BEDLAM's animations, from https://bedlam"):
        motion_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no motions"):
        motion_files(tmp_path)
    np.savez(tmp_path / "shape.npz", **GOOD)
    with pytest.raises(ValueError, match=r"without `shape` in their path \(1 have it: shape\.npz\)"):
        motion_files(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"None of the 1 files in .* can be used:\n.*a\.npz: cannot be read"):
        Motions.load(tmp_path, tmp_path / "cache")


def test_only_what_changed_is_read_again(animations, tmp_path, monkeypatch) -> None:
    cache, read = tmp_path / "cache", []
    before = Motions.load(animations, cache)
    content = {path.name: path.read_bytes() for path in cache.iterdir()}
    monkeypatch.setattr("mega.data.motions.read_motion", lambda path: (read.append(path), read_motion(path))[1])
    animations.chmod(0o500)  # nothing is written there
    assert Motions.load(animations, cache).problems == before.problems
    assert not read
    animations.chmod(0o700)

    changed, removed = (animations / motion.path for motion in before.motions[3:5])
    poses = np.ones((7, 72))
    np.savez(changed, poses=poses, betas=np.zeros(10), gender="f")
    removed.unlink()
    np.savez(animations / "aaa.npz", **GOOD)
    after = Motions.load(animations, cache)
    assert sorted(read) == sorted([changed, animations / "aaa.npz"])
    assert len(after) == 12
    # The others' poses have moved along.
    old = {motion.path: i for i, motion in enumerate(before.motions)}
    for motion in after.motions:
        pose = after.poses[motion.row : motion.row + motion.frames]
        if animations / motion.path == changed:
            assert (pose == 1).all()
            assert pose.shape == (7, 63)
        elif motion.path != "aaa.npz":
            was = before.motions[old[motion.path]]
            np.testing.assert_array_equal(pose, before.poses[was.row : was.row + was.frames])
    assert len(list(cache.iterdir())) == 2

    # A cache that is no longer whole is made anew.
    (packed,) = cache.glob("*.f32")
    half = packed.read_bytes()[:100]
    packed.unlink()  # `after` has it mapped
    packed.write_bytes(half)
    again = Motions.load(animations, cache)
    np.testing.assert_array_equal(again.poses, after.poses)
    assert content.keys() != {path.name for path in cache.iterdir()}


def test_a_motion_is_in_one_split_whatever_other_files_there_are(animations, motions, tmp_path) -> None:
    splits = {name: {m.path for m in motions.split(name, SHARES).motions} for name in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 12
    for i in range(400):
        np.savez(animations / f"more_{i}.npz", **GOOD)
    more = Motions.load(animations, tmp_path / "cache")
    for name, paths in splits.items():
        split = {m.path for m in more.split(name, SHARES).motions}
        assert paths <= split
        share = SHARES.get(name, 0.6)
        assert abs(len(split) - share * 412) < 4 * np.sqrt(412 * share * (1 - share))
    with pytest.raises(ValueError, match="falls into the val split, with a share of 0"):
        more.split("val", {"val": 0, "test": 0.1})
    with pytest.raises(ValueError, match="together less than 1"):
        more.split("val", {"val": 0.5, "test": 0.5})


def test_every_frame_is_seen_over_the_epochs(motions) -> None:
    epochs = [MotionDataset(motions, frames_per_second=6, epoch=e) for e in range(5)]
    assert len({len(frames) for frames in epochs}) == 1
    seen = np.concatenate([frames.place for frames in epochs])
    assert len(set(seen.tolist())) == len(seen)
    counts = motions.frames // 5 * 5
    assert len(seen) == counts.sum()  # all but the rest of each motion's division
    # Places are those of the data set of all frames; a motion that is too short still gives a frame.
    everything, some = MotionDataset(motions), MotionDataset(motions, frames_per_second=0.03, epoch=777)
    assert len(some) == len(motions)
    for i, place in enumerate(some.place):
        assert torch.equal(some[i]["pose"], everything[int(place)]["pose"])
    with pytest.raises(ValueError, match=r"data\.frames_per_file=1 and data\.frames_per_second=5 exclude each other"):
        MotionDataset(motions, frames_per_file=1, frames_per_second=5)
    for rate in (0, -1, np.nan):
        with pytest.raises(ValueError, match=rf"data\.frames_per_second={rate}: give a number above 0"):
            MotionDataset(motions, frames_per_second=rate)
    with pytest.raises(ValueError, match=r"data\.frames_per_file=0: give 1 or more"):
        MotionDataset(motions, frames_per_file=0)
    limited = MotionDataset(motions, limit=3)
    assert limited.place.tolist() == [0, round((len(everything) - 1) / 2), len(everything) - 1]


def test_an_epoch_has_one_random_frame_of_each_file(motions) -> None:
    epochs = [MotionDataset(motions, frames_per_file=1, epoch=e) for e in range(400)]
    assert all(frames.motion.tolist() == list(range(12)) for frames in epochs)
    drawn = np.array([frames.frame for frames in epochs])  # (400, 12)
    for i, n in enumerate(motions.frames):
        counts = np.bincount(drawn[:, i], minlength=n)
        assert len(counts) == n
        assert counts.min() > 0
        assert abs(drawn[:, i].mean() - (n - 1) / 2) < 4 * n / np.sqrt(12 * 400)
    # A function of seed, epoch and file, whatever other files there are.
    some = motions.split("train", SHARES)
    rows = [[m.path for m in motions.motions].index(m.path) for m in some.motions]
    assert 0 < len(rows) < 12
    assert MotionDataset(some, frames_per_file=1, epoch=7).frame.tolist() == drawn[7, rows].tolist()
    assert not np.array_equal(MotionDataset(motions, frames_per_file=1, epoch=7, seed=1).frame, drawn[7])
    several = MotionDataset(motions, frames_per_file=3, epoch=7)
    assert several.motion.tolist() == [i for i in range(12) for _ in range(3)]
    assert len(set(several.place.tolist())) > 24


def write_3dpw(path: Path, people: int = 6) -> dict[str, np.ndarray]:
    """An annotation file in the form of the published 3DPW files: test flavour, depth in the third column of j2d."""
    rng = np.random.default_rng(1)
    columns = {
        "imgname": np.array([f"datasets/3DPW/imageFiles/downtown_00/image_{i:05}.jpg" for i in range(people)]),
        "center": np.full((people, 2), 500.0),
        "scale": np.full(people, 0.7),
        "root_orient": rng.standard_normal((people, 3)),
        "pose_body": 0.2 * rng.standard_normal((people, 63)),
        "betas": rng.standard_normal((people, 10)),
        "gender": np.array(["m", "f"] * people)[:people],
        "j2d": np.concatenate([rng.uniform(0, 900, (people, 24, 2)), rng.uniform(2, 9, (people, 24, 1))], axis=2),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **columns)
    return columns


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Body, animations, and small tokenizer and prior where the released ones belong."""
    folder = tmp_path_factory.mktemp("project")
    write_body(folder)
    bodies = folder / "body_models" / "smplh"
    for gender, scale in (("m", 1.1), ("f", 0.9)):
        (bodies / gender).mkdir()
        with np.load(bodies / "neutral" / "model.npz") as file:
            np.savez(bodies / gender / "model.npz", **dict(file) | {"v_template": scale * file["v_template"]})
    (write_animations(folder) / "person_0" / "broken.npz").unlink()
    config = composed("train_mesh_vqvae", "experiment=mesh_vqvae_54", *SMALL_TOKENIZER)
    tokenizer = instantiate(config.tokenizer)(body=SMPLHBody(folder / "body_models"))
    write_released(tokenizer, folder / "checkpoint" / "MESH_VQVAE" / "mesh_vqvae_54")
    prior = VQMAE(dim=32, encoder_depth=1, decoder_depth=1)
    write_released(prior, folder / "checkpoint" / "VQMAE" / "mega_pretrained")
    return folder


def fake_trainer(training: bool = True, fast_dev_run: bool = False) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(training=training, fast_dev_run=fast_dev_run, strategy=strategy)


@needs_template
def test_meshes_have_their_gender(project) -> None:
    body = SMPLHBody(project / "body_models")
    data = MotionMeshData(body, project / "datasets" / "bedlam_animations", project / "cache", batch_size=4)
    data.trainer = fake_trainer(training=False)
    data.prepare_data()
    frames = MotionDataset(data.motions)
    items = [frames[int(np.flatnonzero(data.motions.gender[frames.motion] == gender)[5])] for gender in (0, 1, 2)]
    batch = data.on_after_batch_transfer(torch.utils.data.default_collate(items), 0)
    assert len(set(batch["gender"].tolist())) == 3
    for item, vertices in zip(items, batch["vertices"], strict=True):
        alone = body(item["pose"][None], item["betas"][None], GENDERS[item["gender"]])[0]
        torch.testing.assert_close(vertices, alone, atol=1e-5, rtol=0)
    assert vertices.mean(0).abs().max() < 1e-4


@needs_template
def test_cached_tokens_equal_those_computed_for_each_batch(project, monkeypatch) -> None:
    monkeypatch.setattr("mega.data.motion_data._SHARD", 64)
    config = composed("pretrain_mega", "experiment=mega_pretrained", *SMALL_TOKENIZER)
    body = SMPLHBody(project / "body_models")
    tokenizer = instantiate(config.tokenizer)(body=body).eval()
    folder, cache = project / "datasets" / "bedlam_animations", project / "tokens"
    options = {"folder": folder, "cache": cache, "batch_size": 8, "shares": SHARES}
    options |= {"default_fps": 120, "frames_per_second": 16}
    cached, fresh = (MotionTokenData(body, tokenizer, cache_tokens=c, **options) for c in (True, False))
    cached.trainer = fresh.trainer = fake_trainer()
    items = [MotionDataset(cached.motions, frames_per_second=np.inf)[i] for i in range(0, 240, 30)]
    bodies = MotionMeshData.on_after_batch_transfer(fresh, torch.utils.data.default_collate(items), 0)["vertices"]
    with torch.no_grad():  # untrained codes would all be far off
        tokenizer.codebook.copy_(tokenizer.encode_latents(bodies).flatten(0, 1).repeat(2, 1)[: len(tokenizer.codebook)])
    cached.prepare_data()
    shards = sorted(cache.glob("motions_train_*.npz"))
    assert len(shards) > 1
    for epoch in (0, 3):
        cached.trainer.current_epoch = epoch
        ours, theirs = cached.train_dataset(), fresh.train_dataset()
        assert len(ours) == len(theirs)
        rows = (0, len(ours) // 2, len(ours) - 1)
        batch = torch.utils.data.default_collate([theirs[i] for i in rows])
        made = fresh.on_after_batch_transfer(batch, 0)["tokens"]
        assert torch.equal(torch.stack([ours[i]["tokens"] for i in rows]), made)
        assert len(made.unique(dim=0)) == 3

    # A stopped computation goes on: what is there is kept.
    kept = shards[0].stat().st_mtime_ns
    shards[-1].unlink()
    again = MotionTokenData(body, tokenizer, cache_tokens=True, **options)
    again.trainer = fake_trainer()
    again.prepare_data()
    assert shards[-1].is_file()
    assert shards[0].stat().st_mtime_ns == kept


@pytest.fixture
def run(project, monkeypatch, capsys):
    """run("train_mesh_vqvae.py", "mode=test", …) -> what was said, in the project's folder; panels are unshaded."""
    monkeypatch.setattr("mega.rendering.people.people_openness", lambda v, f: np.ones(v.shape[:2], np.float32))

    def run_script(script: str, *arguments: str, folder: Path = project) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                said = capsys.readouterr()
                pytest.fail(f"{end.code}\n{said.err}{said.out}")
        said = capsys.readouterr()
        return said.out + said.err

    return run_script


FEW = ("data.frames_per_file=4", "data.shares={val: 0.2, test: 0.2}", "data.val_frames=4", "data.test_frames=4")


@needs_template
def test_tokenizer_is_trained_measured_and_exported(run, project) -> None:
    options = ("experiment=mesh_vqvae_54", *SMALL_TOKENIZER, *FEW, "data.batch_size=4")
    broken = project / "datasets" / "bedlam_animations" / "broken.npz"
    broken.write_bytes(b"PK")
    with pytest.raises(pytest.fail.Exception, match=r"trained to the end, but 1 problem\(s\)") as said:
        run("train_mesh_vqvae.py", *options, "trainer.max_epochs=2")
    assert "broken.npz: cannot be read as arrays (.npz): it is a zip file" in str(said.value)
    broken.unlink()
    state = torch.load(project / "runs" / "mesh_vqvae_54" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] > 2
    measured = run("train_mesh_vqvae.py", *options, "mode=test")
    assert re.search(r"test/V2V_mm +\d+", measured)
    assert re.search(r"test/PA-V2V_mm +\d+", measured)
    assert "vertex_error" not in measured  # a decoded mesh may be shifted freely

    released = project / "checkpoint" / "MESH_VQVAE" / "mesh_vqvae_54"
    before = released.read_bytes()
    with pytest.raises(pytest.fail.Exception, match="is a released file and is not overwritten"):
        run("train_mesh_vqvae.py", *options, "mode=export")
    assert released.read_bytes() == before
    run("train_mesh_vqvae.py", *options, "mode=export", "weights=own/tokenizer.safetensors")
    assert "test/V2V_mm" in run("train_mesh_vqvae.py", *options, "mode=test", "weights=own/tokenizer.safetensors")
    # The next step takes it; a dry run makes no tokens but its own.
    prior = ("experiment=mega_pretrained", *SMALL_PRIOR, *FEW, "data.batch_size=4", "data.cache=dry")
    run("pretrain_mega.py", *prior, "tokenizer_weights=own/tokenizer.safetensors", "trainer.fast_dev_run=true")
    assert [path.name for path in (project / "dry").iterdir()] == ["motions"]


@needs_template
def test_prior_is_trained_measured_and_exported(run, project) -> None:
    options = ("experiment=mega_pretrained", *SMALL_TOKENIZER, *SMALL_PRIOR, *FEW, "data.batch_size=4")
    said = run("pretrain_mega.py", *options, "trainer.max_epochs=2")
    assert re.search(r"an epoch has \d+ frames: 4 random ones of each motion, whatever its frame rate", said)
    assert "12 of them do not give their frame rate" in said
    assert "1 .npz files are left out because their path holds `shape`: person_0/shape.npz" in said
    assert "validation on 4 frames of motions that are held out (datasets/3dpw/3dpw_validation.npz and " in said
    assert (project / "runs" / "mega_pretrained" / "checkpoints" / "best_cross_entropy.ckpt").is_file()
    # The tokens of a frame that is drawn once are not worth a cache.
    assert [path.name for path in (project / "runs" / "cache").glob("*.npz")] == ["motions_val_000.npz"]
    assert "test/cross_entropy_50_percent_masked" in run("pretrain_mega.py", *options, "mode=test")
    with pytest.raises(pytest.fail.Exception, match="is a released file and is not overwritten"):
        run("pretrain_mega.py", *options, "mode=export")
    own = "weights=own/vqmae.safetensors"
    run("pretrain_mega.py", *options, "mode=export", own)
    assert "test/cross_entropy_50_percent_masked" in run("pretrain_mega.py", *options, "mode=test", own)


@pytest.mark.parametrize(
    ("script", "experiment"),
    [
        ("train_mesh_vqvae", "mesh_vqvae_54"),
        ("train_mesh_vqvae", "mesh_vqvae_54_finetune"),
        ("pretrain_mega", "mega_pretrained"),
    ],
)
def test_defaults_are_the_published_ones(script, experiment) -> None:
    config = composed(script, f"experiment={experiment}")
    assert (config.data.batch_size, config.data.frames_per_file, config.data.frames_per_second) == (16, 1, None)
    assert config.data.default_fps == DEFAULT_FPS
    assert config.data.val_annotations == ["datasets/3dpw/3dpw_validation.npz", "datasets/3DPW/3DPW_validation.npz"]
    if script == "train_mesh_vqvae":
        training = config.training
        assert (training.lr, training.steps, training.free_shift, training.edge_weight) == (5e-5, None, True, 0)
        assert (config.trainer.max_epochs, config.trainer.precision) == (500, "32-true")
        assert config.monitor == {"v2v": "val/V2V_mm", "loss": "val/loss"}
        assert config.trainer.gradient_clip_val is None


@needs_template
@pytest.mark.slow
def test_an_interrupted_training_on_random_frames_ends_the_same(run, project) -> None:
    options = ("experiment=mesh_vqvae_54", *SMALL_TOKENIZER, *FEW, "data.batch_size=4", "trainer.max_epochs=3")
    run("train_mesh_vqvae.py", *options, "output=runs/whole")
    run("train_mesh_vqvae.py", *options, "output=runs/parts", "trainer.max_steps=8")  # within the second epoch
    states = [project / "runs" / name / "checkpoints" / "last.ckpt" for name in ("whole", "parts")]
    steps = [torch.load(state, weights_only=True)["global_step"] for state in states]
    assert steps[1] == 8
    assert steps[0] // 3 < 8 < 2 * steps[0] // 3
    assert "resuming from" in run("train_mesh_vqvae.py", *options, "output=runs/parts")
    assert differences(*states) == []
    (log,) = (project / "runs" / "whole").glob("csv/*/metrics.csv")
    assert {"val/V2V_mm", "val/PA-V2V_mm", "val/loss"} <= set(log.read_text().splitlines()[0].split(","))
    assert states[0].with_name("best_v2v.ckpt").is_file()


@needs_template
def test_validation_uses_the_bodies_of_3dpw(run, project) -> None:
    body, folder = SMPLHBody(project / "body_models"), project / "datasets"
    columns = write_3dpw(folder / "3DPW" / "3DPW_validation.npz")
    paths = [folder / "3dpw" / "3dpw_validation.npz", folder / "3DPW" / "3DPW_validation.npz"]
    options = {"folder": folder / "bedlam_animations", "cache": project / "cache", "batch_size": 6}
    data = MotionMeshData(body, **options, val_annotations=paths)
    assert data.annotation_file("val") == paths[1]
    (batch,) = list(data.val_dataloader())
    vertices = data.on_after_batch_transfer(batch, 0)["vertices"]
    for i, gender in enumerate(columns["gender"]):  # without the root, of the person's own gender
        pose, betas = (torch.from_numpy(columns[n][i : i + 1]).float() for n in ("pose_body", "betas"))
        torch.testing.assert_close(vertices[i], body(pose.view(1, 21, 3), betas, gender)[0], atol=1e-5, rtol=0)
    try:
        common = ("trainer.max_epochs=1", "data.batch_size=4", *FEW, *SMALL_TOKENIZER)
        line = "validation on 4 bodies of datasets/3DPW/3DPW_validation.npz"
        assert line in run("train_mesh_vqvae.py", "experiment=mesh_vqvae_54", *common, "output=runs/on_3dpw")
        prior = ("experiment=mega_pretrained", *common, *SMALL_PRIOR, "data.cache=tokens_3dpw")
        assert line in run("pretrain_mega.py", *prior, "output=runs/prior_on_3dpw")
        with np.load(project / "tokens_3dpw" / "motions_val_000.npz") as file:
            assert file["tokens"].shape == (4, 54)
        # One's own file goes first.
        write_3dpw(paths[0], 3)
        assert MotionMeshData(body, **options, val_annotations=paths).annotation_file("val") == paths[0]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


@needs_template
def test_tokenizer_is_tested_on_3dpw_by_number_of_quantizers(run, project) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"3DPW_test\.npz do not exist: python tools/prepare_data\.py 3dpw"):
        run("train_mesh_vqvae.py", "experiment=mesh_vqvae_54", *SMALL_TOKENIZER, "mode=test", "data=3dpw_meshes")
    write_3dpw(project / "datasets" / "3DPW" / "3DPW_test.npz")
    said = run("train_mesh_vqvae.py", "experiment=mesh_vqvae_54", *SMALL_TOKENIZER, "mode=test", "data=3dpw_meshes")
    assert re.search(r"test/V2V_mm +\d+\.\d+", said)
    assert "first_1_of" not in said
    small = (
        "tokenizer.channels=[4,4,4,4,4,4,9,9,9,4,4,4,4,4,4,3]",
        "tokenizer.n_bases=[2,0,2,0,2,0,2,0,0,2,0,2,0,2,0,2]",
    )
    options = ("experiment=mesh_vqvae_54", "tokenizer=smpl_7_residual", *small, "weights=own/residual.safetensors")
    run("train_mesh_vqvae.py", *options, *FEW, "data.batch_size=4", "output=runs/residual", "trainer.max_epochs=1")
    run("train_mesh_vqvae.py", *options, "output=runs/residual", "mode=export")
    said = run("train_mesh_vqvae.py", *options, "mode=test", "data=3dpw_meshes")
    for name in ("V2V_mm", "PA-V2V_mm"):
        values = re.findall(rf"test/{name}_first_\d_of_8 +(\d+\.\d+)", said)
        assert len(values) == 8
        assert values[-1] == re.search(rf"test/{name} +(\d+\.\d+)", said)[1]


@needs_template
@pytest.mark.slow
def test_latents_of_a_released_tokenizer_are_analysed(run, project) -> None:
    write_3dpw(project / "datasets" / "3DPW" / "3DPW_test.npz")
    options = ("experiment=mesh_vqvae_54", *SMALL_TOKENIZER, "bodies=4", "token_bodies=2", "steps=3")
    for data in ("data=3dpw_meshes", "data.shares={val: 0.2, test: 0.4}"):
        said = run("tools/latent_analysis.py", *options, data, "output=latents")
        assert "limb lengths halfway between two bodies" in said
        numbers = json.loads((project / "latents" / "latent.json").read_text())
        assert (numbers["tokens_per_body"], numbers["pairs"]) == (54, 2)


@needs_template
def test_fine_tuning_takes_half_of_each_batch_from_3dpw(run, project) -> None:
    columns = write_3dpw(project / "datasets" / "3dpw" / "3dpw_train.npz", people=5)
    body = SMPLHBody(project / "body_models")
    data = MotionMeshData(
        body,
        project / "datasets" / "bedlam_animations",
        project / "cache",
        batch_size=4,
        frames_per_file=2,
        shares={"val": 0, "test": 0},
        train_annotations=[project / "datasets" / "3dpw" / "3dpw_train.npz"],
    )
    loop = SimpleNamespace(restarting=False)
    data.trainer = SimpleNamespace(current_epoch=0, fit_loop=loop, global_rank=0, world_size=1)
    poses = columns["pose_body"].reshape(5, 21, 3).astype(np.float32)
    seen = []
    for batch in data.train_dataloader():
        row = [np.flatnonzero((np.abs(poses - pose.numpy()) < 1e-6).all((1, 2))).tolist() for pose in batch["pose"]]
        assert [len(r) for r in row] == [0, 1, 0, 1]
        seen += [row[1][0], row[3][0]]
    assert len(seen) == 24  # two frames of each of 12 motions, as many of 3DPW
    assert np.bincount(seen, minlength=5).min() >= 4
    with pytest.raises(ValueError, match=r"data\.batch_size=3 must be even"):
        MotionMeshData(body, data.folder, data.cache, batch_size=3, train_annotations=["a.npz"])

    options = ("experiment=mesh_vqvae_54_finetune", *SMALL_TOKENIZER, *FEW, "data.batch_size=4")
    run("train_mesh_vqvae.py", *options, "trainer.fast_dev_run=true")
    assert not (project / "runs" / "mesh_vqvae_54_finetune" / "checkpoints").exists()
    said = run("train_mesh_vqvae.py", *options, "trainer.max_steps=1", "trainer.log_every_n_steps=1")
    assert "half of each batch from the 5 bodies of datasets/3dpw/3dpw_train.npz" in said
    output = project / "runs" / "mesh_vqvae_54_finetune"
    state = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    released = torch.load(project / "checkpoint" / "MESH_VQVAE" / "mesh_vqvae_54", weights_only=False)["model"]
    started = {key.removeprefix("module."): value for key, value in released.items()}
    moved = {key: (state[f"tokenizer.{key}"] - value).abs().max() for key, value in started.items()}
    assert max(v for key, v in moved.items() if key.startswith("encoder")) < 1e-4  # one step of Adam at 5e-5
    assert moved["vq_vae._embedding.weight"] > 0  # in evaluation mode the codebook would stay
    (log,) = output.glob("csv/*/metrics.csv")
    assert {"train/V2V_mm", "train/PA-V2V_mm"} <= set(log.read_text().splitlines()[0].split(","))


@needs_template
def test_tokenizer_at_true_size(run) -> None:
    """A step of training and of validation. (The prior's takes minutes.)"""
    run("train_mesh_vqvae.py", "experiment=mesh_vqvae_54", "trainer.fast_dev_run=true", "data.batch_size=2", *FEW)


@needs_template
@pytest.mark.parametrize(
    ("script", "experiment", "small"),
    [
        ("train_mesh_vqvae.py", "mesh_vqvae_54", SMALL_TOKENIZER),
        ("pretrain_mega.py", "mega_pretrained", SMALL_TOKENIZER + SMALL_PRIOR),
    ],
)
def test_a_missing_folder_is_reported_in_one_sentence(run, project, tmp_path, script, experiment, small) -> None:
    for name in ("body_models", "checkpoint"):
        (tmp_path / name).symlink_to(project / name)
    with pytest.raises(pytest.fail.Exception) as said:
        run(script, f"experiment={experiment}", *small, folder=tmp_path)
    assert "\ndatasets/bedlam_animations is missing: BEDLAM's animations, from https://bedlam" in str(said.value)
    assert "Traceback" not in str(said.value)


def test_setup_check_looks_into_the_animations(animations, tmp_path, capsys) -> None:
    (animations / "person_0" / "broken.npz").unlink()
    found = []
    for _ in range(2):
        check_setup(tmp_path)
        found += re.findall(r"(\w+) +datasets/bedlam_animations", capsys.readouterr().out)[:1]
        (animations / "aaa.npz").write_bytes(b"PK")
    assert found == ["ok", "wrong"]
