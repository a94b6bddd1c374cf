"""The second stage of the published training: four data sets at once, from the first stage's weights."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from mega.data.smpl_images import draw_mixture
from mega_common.weights_io import read_weights
from tests.helpers.fake_files import (
    ROOT,
    SMALL,
    composed,
    needs_template,
    write_data_sets,
    write_mixture,
    write_project,
)

EXPERIMENTS = ("mega_hrnet", "mega_resnet", "mega_vit")


class Rows(Dataset):
    def __init__(self, n: int):
        self.n, self.epoch = n, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        return {"index": index}


def parts_and_rows(mixture: Subset) -> tuple[np.ndarray, np.ndarray]:
    """Which part each item of a mixture is from, and which row of it."""
    starts = np.cumsum([0, *map(len, mixture.dataset.datasets)])
    part_of = np.searchsorted(starts, mixture.indices, side="right") - 1
    return part_of, mixture.indices - starts[part_of]


def test_every_set_is_drawn_with_equal_probability() -> None:
    """An epoch is as long as the longest set, whatever the sets' sizes, and a function of (seed, epoch)."""
    parts, drawn = [Rows(100), Rows(4000), Rows(50)], []
    for epoch in range(2):
        mixture = draw_mixture(parts, (1, 1, 1), epoch=epoch, seed=1)
        assert len(mixture) == 4000
        part_of, row_of = parts_and_rows(mixture)
        assert [mixture[i]["index"] for i in range(len(mixture))] == row_of.tolist()
        counts = np.bincount(part_of)
        assert np.abs(counts - 4000 / 3).max() < 4 * np.sqrt(4000 * 2 / 9)  # four standard deviations
        for part, n in enumerate(counts):
            times = np.bincount(row_of[part_of == part], minlength=len(parts[part]))
            # None comes once more than another may.
            assert times.max() - times.min() <= 1
            assert times.sum() == n
        assert all(part.epoch == epoch for part in parts)
        drawn.append(mixture.indices)
    assert drawn[0] != drawn[1]
    assert drawn[1] == draw_mixture(parts, (1, 1, 1), epoch=1, seed=1).indices


def test_shares_are_relative_probabilities() -> None:
    part_of, _ = parts_and_rows(draw_mixture([Rows(1000), Rows(10)], (3, 1), epoch=0, seed=0))
    assert abs(part_of.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


def test_a_single_set_is_used_completely() -> None:
    assert sorted(draw_mixture([Rows(10)], (1,), epoch=3, seed=0).indices) == list(range(10))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_stages_fit_together(name: str) -> None:
    """The second stage differs from the first in its data, its length, where it starts and where it writes."""
    first, second = (composed("train_mega", f"experiment={name}{stage}") for stage in ("", "_mixture"))
    assert first.model == second.model
    assert first.training == second.training
    assert first.crop == second.crop
    assert (first.trainer.max_epochs, second.trainer.max_epochs) == (200, 10)
    assert {**first.data, "train": None} == {**second.data, "train": None}
    assert [*second.data.train] == ["coco", "mpii", "h36m", "mpi_inf_3dhp"]
    assert not any("share" in source for source in second.data.train.values())  # all alike
    assert first.output != second.output
    assert first.weights != second.weights
    text = (ROOT / "configs" / "experiment" / f"{name}_mixture.yaml").read_text()
    assert f"experiment={name} mode=export weights={second.pretrained}\n" in text


@needs_template
@pytest.mark.slow
def test_both_stages_run(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = write_project(tmp_path, {"mega_resnet": SMALL})
    write_data_sets(folder)
    write_mixture(folder)
    validated = folder / "datasets" / "3dpw"
    (validated / "3dpw_test.npz").rename(validated / "3dpw_validation.npz")
    (validated / "images" / "0.jpg").unlink()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> int | None:
        options = (*SMALL, "data.workers=0", "data.batch_size=2", "loss_points=8", *arguments)
        monkeypatch.setattr(sys, "argv", ["train_mega.py", *options])
        try:
            runpy.run_path(str(ROOT / "train_mega.py"), run_name="__main__")
        except SystemExit as end:
            return end.code

    coco, mixture = (f"checkpoint/mega_resnet_{stage}.safetensors" for stage in ("coco", "mixture"))
    second = ("experiment=mega_resnet_mixture", "training.base_lr=0", "trainer.max_epochs=1", "data.val_share=1")
    status = run(*second)
    assert status
    assert coco in f"{status} {capsys.readouterr().err}"
    assert not run("experiment=mega_resnet", "trainer.max_steps=1", "data.val=null", "backbone_weights=random")
    assert not run("experiment=mega_resnet", "mode=export", f"weights={coco}")
    assert run(*second)  # to the end, but not with status 0
    assert "3dpw_validation.npz, row 0, datasets/3dpw/images/0.jpg: " in capsys.readouterr().out
    assert not run(*second, "mode=export")
    # Nothing is learned at a rate of 0: the second stage ends with what it started from.
    (started, _), (ended, _) = (read_weights(folder / path, "CVQMAE") for path in (coco, mixture))
    for name, value in started.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(value, ended[name]), name
