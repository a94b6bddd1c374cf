"""Rows and pictures that cannot be used: training reports and replaces them, a test refuses them."""

from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mega.data import Augmentation, SMPLImageData, SMPLImages
from mega.data.smpl_annotations import SMPLAnnotations
from mega.data.smpl_images import BadPictureError, draw_mixture

PEOPLE = 8
WILD = Augmentation(scale=0.2, degrees=30, turn_probability=1, look=(v2.ColorJitter(0.4), v2.RandomErasing(0.5)))


def write(folder: Path, flavour: str = "real", **changes) -> Path:
    """Annotations of people in pictures 0.png to 7.png, and the pictures; `changes` are {field: {row: value}}."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for i in range(PEOPLE):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    columns = {
        "imgname": np.array([f"{i}.png" for i in range(PEOPLE)]),
        "center": np.tile([40.0, 30], (PEOPLE, 1)),
        "scale": np.full(PEOPLE, 0.25 if flavour == "real" else 4.0),
        "betas": rng.normal(size=(PEOPLE, 10)),
        "gender": np.array(["f", "m", "neutral", "male"] * (PEOPLE // 4)).astype("U16"),
    }
    points = rng.uniform(5, 60, (PEOPLE, 24, 3))
    if flavour == "real":
        columns |= {"pose_cam": rng.normal(size=(PEOPLE, 72)), "part": points}
    else:
        columns |= {
            "root_orient": rng.normal(size=(PEOPLE, 3)),
            "pose_body": rng.normal(size=(PEOPLE, 63)),
            "j2d": points,
        }
    for field, rows in changes.items():
        for row, value in rows.items():
            columns[field][row] = value
    np.savez(folder / "set.npz", **columns)
    return folder / "set.npz"


def images(path: Path, **changes) -> SMPLImages:
    return SMPLImages(path, crop_size=32, augmentation=WILD, training=True, **changes)


BAD = [
    ("center", np.nan, "center is not finite"),
    ("scale", 0.0, r"scale is 0\.0, it must be above 0"),
    ("scale", -0.25, r"scale is -0\.25"),
    ("scale", np.inf, "scale is not finite"),
    ("betas", np.nan, "betas is not finite"),
    ("gender", "unknown", "The gender 'unknown' is none of"),
]


@pytest.mark.parametrize(
    ("field", "value", "reason"), [*BAD, ("part", np.nan, "part"), ("pose_cam", np.inf, "pose_cam")]
)
def test_training_leaves_bad_rows_out_and_reports_them(tmp_path, caplog, field, value, reason) -> None:
    path = write(tmp_path, **{field: {2: value, 5: value}})
    table = SMPLAnnotations.load(path, skip_bad_rows=True)
    assert table.row.tolist() == [0, 1, 3, 4, 6, 7]
    whole = SMPLAnnotations.load(write(tmp_path / "whole"))
    for name in ("imgname", "center", "scale", "pose", "betas", "gender", "keypoints2d"):
        np.testing.assert_array_equal(getattr(table, name), getattr(whole, name)[table.row])
    (record,) = caplog.records
    for words in (str(path), "2 of 8 rows", "row 2 (2.png)", "row 5 (5.png)"):
        assert words in record.getMessage()
    with pytest.raises(ValueError, match=reason):
        SMPLAnnotations.load(path)


@pytest.mark.parametrize("flavour", ["real", "test"])
@pytest.mark.parametrize(("field", "value", "reason"), BAD)
def test_a_test_set_with_bad_rows_is_refused(tmp_path, flavour, field, value, reason) -> None:
    path = write(tmp_path, flavour, **{field: {6: value}})
    with pytest.raises(ValueError, match=rf"set\.npz: 1 of 8 rows cannot be used: row 6 \(6\.png\): {reason}"):
        SMPLImages(path)
    data = SMPLImageData(None, None, train={}, test={"path": path})
    with pytest.raises(ValueError, match="Correct them"):
        data.test_dataloader()


def test_many_bad_rows_are_counted_and_the_first_listed(tmp_path, caplog) -> None:
    path = write(tmp_path, center=dict.fromkeys(range(7), np.nan))
    assert len(SMPLAnnotations.load(path, skip_bad_rows=True)) == 1
    assert "7 of 8 rows" in caplog.text
    assert "row 4 (4.png)" in caplog.text
    assert "row 5" not in caplog.text
    assert "(by field: center 7)" in caplog.text
    with pytest.raises(ValueError, match=r"8 of 8 rows .* None is left"):
        SMPLAnnotations.load(write(tmp_path, scale=dict.fromkeys(range(8), 0)), skip_bad_rows=True)


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """Pictures that are missing, empty, cut short and no picture; boxes far too small and far too large."""
    path = write(tmp_path / "set", scale={7: 1e-6, 5: 1e7})
    whole = (tmp_path / "set" / "3.png").read_bytes()
    (tmp_path / "set" / "1.png").unlink()
    for row, content in ((2, b""), (3, whole[: len(whole) // 2]), (6, b"no picture")):
        (tmp_path / "set" / f"{row}.png").write_bytes(content)
    return path


def test_a_person_without_picture_is_replaced_by_the_next(spoilt: Path) -> None:
    """Rows 0 and 4 can be used. What is given is that person's whole item."""
    data = images(spoilt, flip_probability=0.5)
    items = [data[i] for i in range(PEOPLE)]
    assert [item["index"] for item in items] == [0, 4, 4, 4, 4, 0, 0, 0]
    for row, item in enumerate(items):
        place, reason = item["problem"]
        assert place == ("" if row in (0, 4) else f"{spoilt}, row {row}")
        assert reason.startswith(f"{place}, {row}.png: " if place else "")
        assert bool(reason) == bool(place)
        for name, value in data.person(item["index"]).items():
            assert torch.equal(torch.as_tensor(item[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("patch", [False, True])
def test_replacements_do_not_depend_on_the_number_of_workers(spoilt: Path, patch: bool) -> None:
    mixture = draw_mixture([images(spoilt, patch=patch)] * 2, shares=(1, 1), epoch=3, seed=0)
    alone, shared = (list(DataLoader(mixture, batch_size=5, num_workers=workers)) for workers in (0, 2))
    problems = [batch["problem"][0] for batch in alone]
    for one, other in zip(alone, shared, strict=True):
        assert one.pop("problem") == other.pop("problem")
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert sum(place != "" for places in problems for place in places) > PEOPLE / 2


@pytest.mark.parametrize("row", [1, 2, 3, 5, 6, 7])
def test_a_test_needs_every_picture(spoilt: Path, row: int) -> None:
    data = SMPLImages(spoilt, crop_size=32)
    assert "problem" not in data[0]
    with pytest.raises(BadPictureError, match=rf"set\.npz, row {row}, {row}\.png: "):
        data[row]


def test_no_picture_at_all_is_an_error(spoilt: Path, tmp_path: Path) -> None:
    data = SMPLImages(spoilt, root=tmp_path / "elsewhere", crop_size=32, training=True)
    with pytest.raises(BadPictureError, match=r"none of its 8 pictures can be used.*elsewhere"):
        data[3]


class ToyBody(nn.Module):
    h36m_regressor, keypoint_regressor = torch.full((17, 5), 0.2), torch.full((24, 5), 0.2)

    def forward(self, pose: Tensor, betas: Tensor, genders: list[str]) -> Tensor:
        return betas[:, :5, None].expand(-1, -1, 3)


class ToyTokenizer(nn.Module):
    def encode(self, vertices: Tensor) -> Tensor:
        return vertices[..., 0].long()


class Training(L.LightningModule):
    """Looks at what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.batches, self.validated = nn.Parameter(torch.zeros(1)), [], []

    def training_step(self, batch: dict) -> Tensor:
        assert "problem" not in batch
        self.batches.append(batch["index"])
        return self.weight * batch["vertices"].mean()

    def validation_step(self, batch: dict) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_training_continues_and_reports_each_bad_picture_once(spoilt: Path, tmp_path: Path, caplog) -> None:
    other = write(tmp_path / "other", betas={3: np.nan})
    val = write(tmp_path / "val", "test")
    (val.parent / "3.png").unlink()
    train = {"spoilt": {"path": spoilt}, "other": {"path": other}}
    options = {"val": {"path": str(val)}, "val_share": 0.5, "crop_size": 32, "batch_size": 4, "workers": 1}
    data = SMPLImageData(ToyBody(), ToyTokenizer(), train, augmentation=WILD, **options)
    module = Training()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=8, reload_dataloaders_every_n_epochs=1, enable_model_summary=False, **quiet
    )
    trainer.fit(module, data)
    assert len(module.batches) == 8 * 2  # as long as the longer set, of 8 people
    assert module.validated[-4:] == [0, 2, 2, 3]  # of rows 1, 3, 5, 7, the second without a picture
    rows, *pictures = data.problems
    assert rows.startswith(f"{other}: 1 of 8 rows cannot be used: row 3 (3.png): betas is not finite")
    bad = {
        path: sorted(line[len(f"{path}, row ")] for line in pictures if line.startswith(f"{path}, "))
        for path in (spoilt, val)
    }
    assert bad == {spoilt: ["1", "2", "3", "5", "6", "7"], val: ["3"]}
    assert len(pictures) == 7
    for line in data.problems:
        assert caplog.text.count(line) == 1
