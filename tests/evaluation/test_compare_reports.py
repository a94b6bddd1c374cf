"""Comparing reports that are written as test_mega.py writes them."""

from pathlib import Path

import numpy as np
import pytest

from mega.evaluation.report import write_report
from mega.evaluation.statistics import Results, bootstrap_interval
from mega.metrics import COCO17, HIPS, MEGA
from tests.helpers.fake_reports import DATA, PEOPLE, columns, compare_reports, errors, people, write
from tools.compare_reports import Row, compare, comparison_table, read_report


@pytest.fixture
def compared(tmp_path: Path):
    """compared("a", "b", …) -> the rows, and the table with the notes below."""

    def run(*names: str, **options) -> tuple[list[Row], str]:
        rows, notes = compare([read_report(tmp_path / name, name) for name in names], **options)
        return rows, "\n".join([comparison_table(rows), *notes])

    return run


def entry(rows: list[Row], name: str, metric: str = "PVE", **which: str) -> Row:
    wanted = {"name": name, "metric": metric, **which}
    (row,) = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return row


def test_numbers_are_those_of_the_people(tmp_path, compared):
    """Means, differences and intervals are those of the same people, although the rows are in another order."""
    a, b = errors(0), errors(1, shift=-4)
    write(tmp_path / "a", columns(a))
    write(tmp_path / "b", columns(b), rows=np.random.default_rng(3).permutation(PEOPLE))
    rows, _ = compared("a", "b")
    assert [row.metric for row in rows] == ["PVE", "PVE", "MPJPE", "MPJPE", "PA-MPJPE", "PA-MPJPE"]
    one, other = entry(rows, "a"), entry(rows, "b")
    assert one.people == PEOPLE
    assert one.mean == pytest.approx(a.mean(), abs=1e-3)
    assert (one.low, one.high) == pytest.approx(bootstrap_interval(a), abs=1e-2)
    assert one.verdict == "baseline"
    assert other.mean == pytest.approx(b.mean(), abs=1e-3)
    assert other.difference[0] == pytest.approx((b - a).mean(), abs=1e-3)
    assert other.difference[1:] == pytest.approx(bootstrap_interval(b - a), abs=1e-2)
    assert other.verdict == "better"


def test_pairing_finds_what_the_means_hide(tmp_path, compared):
    """A small change for everyone is clear, although the intervals of the means overlap widely."""
    write(tmp_path / "a", columns(errors(0, noise=0)))
    write(tmp_path / "b", columns(errors(0, noise=0, shift=2) + 0.1 * errors(5, noise=1) % 1))
    rows, _ = compared("a", "b")
    assert entry(rows, "a").high > entry(rows, "b").low + 10
    assert entry(rows, "b").verdict == "worse"


def test_equals_are_rarely_marked(tmp_path, compared):
    """Few of the runs that differ by noise alone are marked."""
    write(tmp_path / "base", columns(errors(0)))
    names = [f"run_{seed}" for seed in range(20)]
    for seed, name in enumerate(names):
        write(tmp_path / name, columns(errors(100 + seed)))
    rows, _ = compared("base", *names, metrics=["PVE"])
    # They share the baseline, so its luck is in all of them.
    assert sum(row.verdict in ("better", "worse") for row in rows) <= 6


def test_a_report_with_itself(tmp_path):
    write(tmp_path / "a", columns(errors()))
    rows, _ = compare([read_report(tmp_path / "a", name) for name in "xy"])
    assert entry(rows, "y").verdict == "the same"
    assert entry(rows, "y").difference[0] == 0


def test_people_that_not_all_have_are_left_out_and_counted(tmp_path, compared):
    a, b = errors(0), errors(1)
    write(tmp_path / "a", columns(a), rows=np.arange(50))
    write(tmp_path / "b", columns(b), rows=np.arange(20, 60))
    rows, printed = compared("a", "b")
    assert entry(rows, "a").people == 30
    assert entry(rows, "a").mean == pytest.approx(a[20:50].mean(), abs=1e-3)
    assert entry(rows, "b").difference[0] == pytest.approx((b - a)[20:50].mean(), abs=1e-3)
    assert "20 of the 50 people of a" in printed
    assert "10 of the 40 people of b" in printed


def test_people_without_a_number_are_left_out_of_that_row_only(tmp_path, compared):
    a = {**columns(errors(0)), "deterministic/2d/keypoints": errors(4)}
    b = {**columns(errors(1)), "deterministic/2d/keypoints": errors(5)}
    b["deterministic/2d/keypoints"][:7] = np.nan
    write(tmp_path / "a", a)
    write(tmp_path / "b", b)
    rows, printed = compared("a", "b", metrics=["PVE", "keypoints"])
    assert {row.metric: row.people for row in rows} == {"PVE": PEOPLE, "keypoints": PEOPLE - 7}
    assert entry(rows, "a", "keypoints").mean == pytest.approx(errors(4)[7:].mean(), abs=1e-3)
    assert "keypoints, % of the box" in printed


@pytest.mark.parametrize("count", [1, 5])
def test_few_people_are_not_judged(tmp_path, compared, count):
    write(tmp_path / "a", columns(errors(0)), rows=np.arange(count))
    write(tmp_path / "b", columns(errors(0, shift=50)), rows=np.arange(count))
    rows, printed = compared("a", "b")
    assert entry(rows, "b").verdict == "too few people"
    assert "*" not in printed
    assert np.isnan(entry(rows, "b").low) == (count == 1)


def test_variants_of_one_report(tmp_path, compared):
    one, mean = errors(0), errors(1, shift=-6)
    best = columns(errors(2, shift=-40), variant="best_of_25")
    write(tmp_path / "a", {**columns(one), **columns(mean, variant="mean_of_25"), **best})
    rows, printed = compared("a", variants=["deterministic", "mean_of_25"])
    assert entry(rows, "mean_of_25").difference[0] == pytest.approx((mean - one).mean(), abs=1e-3)
    assert "ground truth" not in printed
    rows, printed = compared("a", variants=["*_25", "deterministic"], baseline="mean_of_25", metrics=["PVE"])
    assert [row.name for row in rows] == ["mean_of_25", "best_of_25", "deterministic"]
    assert entry(rows, "mean_of_25").verdict == "baseline"
    assert "chosen with the ground truth" in printed


def test_variants_of_two_reports_are_rows(tmp_path, compared):
    for seed, name in enumerate("ab"):
        write(tmp_path / name, {**columns(errors(seed)), **columns(errors(seed, -9), variant="mean_of_5")})
    rows, _ = compared("a", "b", variants=["deterministic", "mean_of_5"], metrics=["PVE"])
    assert [row.variant for row in rows] == ["deterministic", "deterministic", "mean_of_5", "mean_of_5"]
    means = [entry(rows, "a", variant=variant).mean for variant in ("deterministic", "mean_of_5")]
    assert means == pytest.approx([errors(0).mean(), errors(0, -9).mean()], abs=1e-3)


def test_protocols_that_not_all_have_are_left_out_and_named(tmp_path, compared):
    write(tmp_path / "a", {**columns(errors(0), "mega"), **columns(errors(1), "hips")}, protocols=(MEGA, HIPS))
    write(tmp_path / "b", columns(errors(2), "mega"), protocols=(MEGA,))
    rows, printed = compared("a", "b")
    assert {row.protocol for row in rows} == {"mega"}
    assert "the protocols hips" in printed


@pytest.mark.parametrize(("given", "name"), [(1, "b"), ("1", "b"), ("b", "b"), ("a", "a")])
def test_baseline_by_number_or_name(tmp_path, compared, given, name):
    write(tmp_path / "a", columns(errors(0)))
    write(tmp_path / "b", columns(errors(1)))
    rows, _ = compared("a", "b", baseline=given)
    assert [row.name for row in rows if row.difference is None] == [name] * 3


def test_the_table_lines_up(tmp_path, capsys):
    write(tmp_path / "plain", columns(errors(0)))
    write(tmp_path / "a_much_longer_name", columns(errors(1, -7)))
    assert compare_reports(tmp_path, "plain", "a_much_longer_name") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + 2 * 3
    assert "better" in lines[3]


def test_reads_what_an_evaluation_writes(tmp_path, compared):
    """A whole report of `write_report`, whose data and protocols are those that are checked."""
    about = dict.fromkeys(("command", "date", "commit", "machine"), "")
    about |= {"data": DATA, "weights": {}, "options": {}, "protocols": {"coco17": COCO17}, "seconds": {}}
    faces, template = np.array([[0, 1, 2]]), np.eye(3)
    for seed, name in enumerate("ab"):
        results = Results(*people(), {**columns(errors(seed)), "deterministic/2d/keypoints": errors(4)})
        write_report(tmp_path / name, results, about, faces, template, [])
    assert read_report(tmp_path / "a", "a").data["hash"] == DATA["hash"]
    _, printed = compared("a", "b")
    assert "Not checked" not in printed


def test_without_a_summary_the_data_are_not_checked_and_the_notes_say_so(tmp_path, compared):
    write(tmp_path / "a", columns(errors(0)))
    write(tmp_path / "b", columns(errors(1)), data=None)
    _, printed = compared("a", "b")
    assert f"Not checked: {tmp_path / 'b'} has no summary.json" in printed


def test_folders_with_strange_names(tmp_path, capsys):
    """Commas, spaces, quotes and "=" in folder names, and folders of the same name elsewhere."""
    names = ['it\'s, a "run"', "tta=flip", "deep/tta=flip"]
    (tmp_path / "deep").mkdir()
    for seed, name in enumerate(names):
        write(tmp_path / name, columns(errors(seed)))
    assert compare_reports(tmp_path, *names) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in names)
