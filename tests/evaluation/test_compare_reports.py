"""Reports side by side: the real script on reports that are written as test_mega.py writes them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mega.evaluation.compare import name_reports
from mega.evaluation.report import write_report
from mega.evaluation.statistics import Results, bootstrap_interval
from mega.metrics import COCO17, HIPS, MEGA
from tests.helpers.fake_reports import DATA, PEOPLE, columns, compare_reports, errors, people, write


@pytest.fixture
def compared(tmp_path: Path, capsys):
    """compared("a", "b", …) -> comparison.json and what was printed."""

    def run(*arguments: str) -> tuple[dict, str]:
        code = compare_reports(tmp_path, *arguments, "output=out")
        printed, complaint = capsys.readouterr()
        assert code == 0, complaint
        return json.loads((tmp_path / "out" / "comparison.json").read_text()), printed

    return run


def entry(found: dict, name: str, metric: str = "PVE", **which: str) -> dict:
    wanted = {"metric": metric, **which}
    (row,) = [row for row in found["rows"] if all(row[key] == value for key, value in wanted.items())]
    return next(entry for entry in row["entries"] if entry["name"] == name)


def test_numbers_are_those_of_the_people(tmp_path, compared):
    """Means, differences and intervals are those of the same people, though the rows stand in another order."""
    a, b = errors(0), errors(1, shift=-4)
    write(tmp_path / "a", columns(a))
    write(tmp_path / "b", columns(b), rows=np.random.default_rng(3).permutation(PEOPLE))
    found, printed = compared("a", "b")
    assert [row["metric"] for row in found["rows"]] == ["PVE", "MPJPE", "PA-MPJPE"]
    assert found["baseline"] == "a"
    assert found["people"] == PEOPLE
    one, other = entry(found, "a"), entry(found, "b")
    assert one["mean"] == pytest.approx(a.mean(), abs=1e-3)
    assert (one["low"], one["high"]) == pytest.approx(bootstrap_interval(a), abs=1e-2)
    assert other["mean"] == pytest.approx(b.mean(), abs=1e-3)
    assert other["difference"] == pytest.approx((b - a).mean(), abs=1e-3)
    interval = other["difference_low"], other["difference_high"]
    assert interval == pytest.approx(bootstrap_interval(b - a), abs=1e-2)
    assert other["excludes_zero"]
    assert other["verdict"] == "better"
    assert f"better: coco17 PVE by {(a - b).mean():.1f} mm" in printed


def test_pairing_sees_what_the_means_hide(tmp_path, compared):
    """A small gain for everyone is clear, though the means' intervals overlap widely."""
    write(tmp_path / "a", columns(errors(0, noise=0)))
    write(tmp_path / "b", columns(errors(0, noise=0, shift=2) + 0.1 * errors(5, noise=1) % 1))
    found, _ = compared("a", "b")
    assert entry(found, "a")["high"] > entry(found, "b")["low"] + 10
    assert entry(found, "b")["verdict"] == "worse"


def test_equals_are_rarely_told_apart(tmp_path, compared):
    """Of runs that differ by noise alone few are marked."""
    write(tmp_path / "base", columns(errors(0)))
    names = [f"run_{seed}" for seed in range(20)]
    for seed, name in enumerate(names):
        write(tmp_path / name, columns(errors(100 + seed)))
    found, _ = compared("base", *names, "metrics=PVE")
    # They share the baseline, so its luck is in all of them.
    assert sum(entry(found, name)["excludes_zero"] for name in names) <= 6


def test_a_report_with_itself(tmp_path, compared):
    write(tmp_path / "a", columns(errors()))
    found, _ = compared("a", "a", "names=[x,y]")
    assert entry(found, "y")["verdict"] == "the same"
    assert entry(found, "y")["difference"] == 0


def test_people_that_not_all_have_are_left_out_and_counted(tmp_path, compared):
    a, b = errors(0), errors(1)
    write(tmp_path / "a", columns(a), rows=np.arange(50))
    write(tmp_path / "b", columns(b), rows=np.arange(20, 60))
    found, printed = compared("a", "b")
    assert found["people"] == 30
    assert entry(found, "a")["mean"] == pytest.approx(a[20:50].mean(), abs=1e-3)
    assert entry(found, "b")["difference"] == pytest.approx((b - a)[20:50].mean(), abs=1e-3)
    assert "20 of the 50 people of a" in printed
    assert "10 of the 40 people of b" in printed


def test_people_without_a_number_are_left_out_of_that_row_only(tmp_path, compared):
    a = {**columns(errors(0)), "deterministic/2d/keypoints": errors(4)}
    b = {**columns(errors(1)), "deterministic/2d/keypoints": errors(5)}
    b["deterministic/2d/keypoints"][:7] = np.nan
    write(tmp_path / "a", a)
    write(tmp_path / "b", b)
    found, printed = compared("a", "b", "metrics=[PVE,keypoints]")
    counts = {row["metric"]: row["people"] for row in found["rows"]}
    assert counts == {"PVE": PEOPLE, "keypoints": PEOPLE - 7}
    assert entry(found, "a", "keypoints")["mean"] == pytest.approx(errors(4)[7:].mean(), abs=1e-3)
    assert "keypoints, % of the box" in printed


@pytest.mark.parametrize("count", [1, 5])
def test_few_people_are_not_judged(tmp_path, compared, count):
    write(tmp_path / "a", columns(errors(0)), rows=np.arange(count))
    write(tmp_path / "b", columns(errors(0, shift=50)), rows=np.arange(count))
    found, _ = compared("a", "b")
    assert entry(found, "b")["verdict"] == "too few people to tell"
    assert not entry(found, "b")["excludes_zero"]
    assert (entry(found, "b")["low"] is None) == (count == 1)


def test_variants_of_one_report(tmp_path, compared):
    one, mean = errors(0), errors(1, shift=-6)
    best = columns(errors(2, shift=-40), variant="best_of_25")
    write(tmp_path / "a", {**columns(one), **columns(mean, variant="mean_of_25"), **best})
    found, printed = compared("a", "variants=[deterministic,mean_of_25]")
    assert entry(found, "mean_of_25")["difference"] == pytest.approx((mean - one).mean(), abs=1e-3)
    assert "knows the truth" not in printed
    found, printed = compared("a", "variants=['*_25',deterministic]", "baseline=mean_of_25", "metrics=PVE")
    assert [e["name"] for e in found["rows"][0]["entries"]] == ["mean_of_25", "best_of_25", "deterministic"]
    assert found["baseline"] == "mean_of_25"
    assert "knows the truth" in printed


def test_variants_of_two_reports_are_rows(tmp_path, compared):
    for seed, name in enumerate("ab"):
        write(tmp_path / name, {**columns(errors(seed)), **columns(errors(seed, -9), variant="mean_of_5")})
    found, _ = compared("a", "b", "variants=[deterministic,mean_of_5]", "metrics=PVE")
    assert [row["variant"] for row in found["rows"]] == ["deterministic", "mean_of_5"]
    means = [entry(found, "a", variant=variant)["mean"] for variant in ("deterministic", "mean_of_5")]
    assert means == pytest.approx([errors(0).mean(), errors(0, -9).mean()], abs=1e-3)


def test_protocols_that_not_all_have_are_left_out_and_named(tmp_path, compared):
    write(tmp_path / "a", {**columns(errors(0), "mega"), **columns(errors(1), "hips")}, protocols=(MEGA, HIPS))
    write(tmp_path / "b", columns(errors(2), "mega"), protocols=(MEGA,))
    found, printed = compared("a", "b")
    assert {row["protocol"] for row in found["rows"]} == {"mega"}
    assert "the protocols hips" in printed


@pytest.mark.parametrize(("given", "name"), [("1", "b"), ("b", "b"), ("a", "a")])
def test_baseline_by_number_or_name(tmp_path, compared, given, name):
    write(tmp_path / "a", columns(errors(0)))
    write(tmp_path / "b", columns(errors(1)))
    found, _ = compared("a", "b", f"baseline={given}")
    assert found["baseline"] == name
    assert "difference" not in entry(found, name)


def test_files_and_the_table(tmp_path, compared):
    """The written table is the printed one and lines up; the picture can be read; nothing else is left behind."""
    write(tmp_path / "plain", columns(errors(0)))
    write(tmp_path / "a_much_longer_name", columns(errors(1, -7)))
    _, printed = compared("plain", "a_much_longer_name")
    text = (tmp_path / "out" / "comparison.md").read_text()
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert "\n".join(lines) in text
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + 2 * 3
    assert """python compare_reports.py 'reports=["plain","a_much_longer_name"]' output=out""" in text
    assert cv2.imread(str(tmp_path / "out" / "comparison.png")).std() > 5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"comparison.{end}" for end in ("json", "md", "png")
    }


def test_reads_what_an_evaluation_writes(tmp_path, compared):
    """A whole report of `write_report`, whose data and protocols are those that are checked."""
    about = dict.fromkeys(("command", "date", "commit", "machine"), "")
    about |= {"data": DATA, "weights": {}, "options": {}, "protocols": {"coco17": COCO17}, "seconds": {}}
    faces, template = np.array([[0, 1, 2]]), np.eye(3)
    for seed, name in enumerate("ab"):
        results = Results(*people(), columns(errors(seed)))
        write_report(tmp_path / name, results, about, faces, template, [])
    found, printed = compared("a", "b")
    assert found["reports"][0]["data"]["hash"] == DATA["hash"]
    assert "Not checked" not in printed


def test_without_a_summary_the_data_are_not_checked_and_that_is_said(tmp_path, compared):
    write(tmp_path / "a", columns(errors(0)))
    write(tmp_path / "b", columns(errors(1)), data=None)
    _, printed = compared("a", "b")
    assert "Not checked, since no summary says what data it is of: b." in printed


def test_folders_with_strange_names(tmp_path, compared):
    """Commas, spaces, quotes and "=" in folder names, and folders of the same name elsewhere."""
    names = ['it\'s, a "run"', "average=flip", "deep/average=flip"]
    (tmp_path / "deep").mkdir()
    for seed, name in enumerate(names):
        write(tmp_path / name, columns(errors(seed)))
    found, _ = compared(*names)
    assert [report["folder"] for report in found["reports"]] == names
    assert [report["name"] for report in found["reports"]] == names


def test_bare_words_are_reports():
    assert name_reports(["a", "metrics=PVE", "b"]) == ['reports=["a","b"]', "metrics=PVE"]
    assert name_reports(["--help"]) == ["--help"]
    assert name_reports(["reports=[a,b]"]) == ["reports=[a,b]"]
