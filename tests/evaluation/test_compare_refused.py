"""Reports that cannot be compared are refused, with the reason."""

from pathlib import Path

import numpy as np
import pytest

from mega.evaluation.statistics import PER_SAMPLE
from mega.metrics import MEGA, STANDARD_3DPW, STANDARD_EMDB
from tests.helpers.fake_reports import DATA, columns, compare_reports, errors, write

REFUSED = {
    "other data": (lambda at: write(at / "b", columns(errors()), data=DATA | {"hash": "f" * 16}), "cannot be compared"),
    "nobody in common": (lambda at: write_others(at / "b"), "nobody in common"),
    "no report": (lambda at: (at / "b").mkdir(), "there is no b/per_sample.csv"),
    "no folder": (lambda at: None, "b is not there"),
    "damaged csv": (lambda at: damage(write(at / "b", columns(errors())) / PER_SAMPLE), "b/per_sample.csv is damaged"),
    "damaged json": (
        lambda at: damage(write(at / "b", columns(errors())) / "summary.json"),
        "summary.json cannot be read",
    ),
    "twice": (lambda at: write(at / "b", columns(errors()), rows=np.array([0, 1, 1])), "more than once"),
    "nothing shared": (lambda at: write(at / "b", columns(errors(), "mega"), protocols=(MEGA,)), "share no column"),
}


def write_others(folder: Path) -> None:
    path = write(folder, columns(errors())) / PER_SAMPLE
    path.write_text(path.read_text().replace("pictures/", "photos/"))


def damage(path: Path) -> None:
    path.write_text(path.read_text()[:-9])


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_with_a_reason(tmp_path, capsys, case):
    spoil, reason = REFUSED[case]
    write(tmp_path / "a", columns(errors()))
    spoil(tmp_path)
    code = compare_reports(tmp_path, "a", "b")
    printed, complaint = capsys.readouterr()
    assert code == 1
    assert reason in complaint
    assert printed == ""


def test_other_data_are__a_report_that_says_nothing_of_its_own(tmp_path, capsys):
    for name, data in (("a", None), ("b", DATA), ("c", DATA | {"hash": "f" * 16})):
        write(tmp_path / name, columns(errors()), data=data)
    assert compare_reports(tmp_path, "a", "b", "c") == 1
    assert "b is on" in capsys.readouterr().err


def test_another_protocol_of_the_same_name_is_refused(tmp_path, capsys):
    write(tmp_path / "a", columns(errors(), "standard"), protocols=(STANDARD_3DPW,))
    write(tmp_path / "b", columns(errors(), "standard"), protocols=(STANDARD_EMDB,))
    code = compare_reports(tmp_path, "a", "b")
    complaint = capsys.readouterr().err
    assert code == 1
    assert "protocol standard is not the same" in complaint
    assert "24 joints" in complaint


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "No reports"),
        (["a"], "nothing to compare"),
        (["a", "a"], "Two reports are called a"),
        (["a", "b", "names=[x]"], "there are 2 reports"),
        (["a", "b", "baseline=2"], "baseline=2"),
        (["a", "b", "metrics=PVEE"], "There are: PVE, MPJPE"),
        (["a", "b", "protocols=mega"], "There are: coco17"),
        (["a", "b", "variants=mean_of_25"], "There are: deterministic"),
    ],
)
def test_wrong_options_are_refused_with_what_there_is(tmp_path, capsys, arguments, reason):
    for name in "ab":
        write(tmp_path / name, columns(errors()))
    code = compare_reports(tmp_path, *arguments)
    complaint = capsys.readouterr().err
    assert code == 1
    assert reason in complaint
