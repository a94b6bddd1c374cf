"""Reports of evaluations: their words, their numbers and every file."""

import csv
import json
import re
from itertools import dropwhile, takewhile

import cv2
import numpy as np
import pytest

from mega.console import format_table
from mega.evaluation.plots import Person, draw_errors_on_body, draw_person
from mega.evaluation.report import describe, write_report
from mega.evaluation.statistics import Results, shown_variants
from mega.metrics import COCO17, HIPS, MEGA
from tests.helpers.results import FACES, TEMPLATE, made_up

ABOUT = {
    "command": "python test_mega.py limit=5",
    "date": "2026-11-24T23:00",
    "commit": "0123456",
    "machine": "one that is made up",
    "weights": {"checkpoint/model.safetensors": "0123456789abcdef"},
    "data": {"name": "made_up", "path": "datasets/made_up.npz", "hash": "fedcba9876543210", "people": 5},
    "options": {"samples": 25, "limit": None},
    "protocols": {"coco17": COCO17, "hips": HIPS},
    "seconds": {"loading": 1.5, "predicting": 20.0},
}


def example(title: str, bend: float) -> Person:
    truth = (TEMPLATE + np.array([0, 0, 8])).astype(np.float32)
    prediction = truth + [0, 0, bend] * np.abs(TEMPLATE)
    return Person(np.full((64, 64, 3), 90, np.uint8), 240.0, np.array([32, 32]), prediction, truth, title)


# Words


def test_protocols_in_words():
    assert "17 joints" in describe(COCO17)
    assert "mean of joints 11 and 12" in describe(COCO17)
    assert "mean of all vertices" in describe(MEGA)
    assert "14 joints of the H36M regressor" in describe(HIPS)


def test_variants_in_their_order():
    columns = ["likeliest_of_25/x/PVE", "mean_of_5/x/PVE", "best_of_10/x/PVE", "best_of_5/x/PVE", "deterministic/x/PVE"]
    expected = ["deterministic", "best_of_5", "best_of_10", "mean_of_5", "likeliest_of_25"]
    assert list(shown_variants([*columns, "spread/apd"])) == expected


def test_tables_line_up_as_text():
    lines = format_table(("a", "number"), [("long name", "1.0"), ("b", "1,234.0")], markdown=True).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|-----------|--------:|"


# Whole reports


def rows_of(report: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    lines = iter(report.split(f"## {heading}")[1].splitlines())
    lines = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines)))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("people", [1, 120])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_report_is_whole_and_its_numbers_are_the_columns(tmp_path, people, sampled):
    results = made_up(people, sampled)
    results.columns["deterministic/2d/keypoints"][0] = np.nan
    examples = [example("best: 34 mm", 0.1), example("worst: 340 mm", 2.0)]
    write_report(tmp_path / "new" / "folder", results, ABOUT, FACES, TEMPLATE, examples)
    folder = tmp_path / "new" / "folder"

    report = (folder / "report.md").read_text()
    for text in ("python test_mega.py limit=5", "0123456789abcdef", "fedcba9876543210", "2026-11-24", "limit=None"):
        assert text in report
    assert re.search(r"\bnan\b|\bNone\b(?<!limit=None)", report) is None
    by_protocol = rows_of(report, "Deterministic prediction")
    assert len(by_protocol) >= 8
    for protocol, metric, mean, _, median, n in by_protocol[:8]:
        values = results.columns[f"deterministic/{protocol}/{metric}"]
        assert (mean, median, n) == (f"{values.mean():.1f}", f"{np.median(values):.1f}", str(people))
    assert ("## Samples" in report, "## Calibration" in report) == (sampled, sampled)
    if sampled:
        samples = {row[0]: row[1] for row in rows_of(report, "Samples")}
        for title, variant in (("one sample", "best_of_1"), ("best of 5", "best_of_5"), ("mean of 25", "mean_of_25")):
            assert samples[title].split()[0] == f"{results.columns[f'{variant}/coco17/PVE'].mean():.1f}"

    linked = set(re.findall(r"!\[.*?\]\((.*?)\)", report))
    expected = {"errors.png", "joints.png", "body.png", "examples.png"}
    assert linked == expected | ({"samples.png", "best_of.png", "calibration.png"} if sampled else set())
    assert {path.name for path in folder.iterdir()} == linked | {"report.md", "summary.json", "per_sample.csv"}
    for name in linked:
        assert cv2.imread(str(folder / name)).std() > 1, name

    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["n"] == people
    assert summary["about"]["protocols"]["hips"]["joints"] == list(HIPS.joints)
    assert summary["about"]["weights"] == ABOUT["weights"]
    for name, row in summary["columns"].items():
        expected_mean = np.nanmean(results.columns[name]) if row["n"] else None
        assert row["mean"] == (pytest.approx(expected_mean) if row["n"] else None)
    with (folder / "per_sample.csv").open() as file:
        assert len(list(csv.reader(file))) == people + 1
    read = Results.read_csv(folder / "per_sample.csv")
    np.testing.assert_allclose(
        read.columns["deterministic/hips/PVE"], results.columns["deterministic/hips/PVE"], atol=1e-3
    )


def test_a_report_of_errors_alone(tmp_path):
    """Without joints, vertices, visibility and examples, and with a column of which nothing is known."""
    results = made_up(6, sampled=True)
    bare = Results(results.images, results.persons, results.columns)
    bare.columns["best_of_5/coco17/PVE"][:] = np.nan
    write_report(tmp_path, bare, {**ABOUT, "seconds": {}}, FACES, TEMPLATE, [])
    assert {path.stem for path in tmp_path.glob("*.png")} == {"errors", "samples", "best_of"}
    report = (tmp_path / "report.md").read_text()
    assert {row[0]: row[1] for row in rows_of(report, "Samples")}["best of 5"] == "–"
    assert "## Time" not in report


def test_a_report_of_unknown_visibility(tmp_path):
    results = made_up(20, sampled=True)
    results.joint_visible = None
    results.joint_error[3, 1] = np.nan
    write_report(tmp_path, results, ABOUT, FACES, TEMPLATE, [])
    report = (tmp_path / "report.md").read_text()
    assert [row[0] for row in rows_of(report, "Visible and hidden joints")] == ["all"]
    assert "| hidden" not in report
    assert (tmp_path / "calibration.png").is_file()


def test_errors_are_where_the_mesh_is_coloured():
    """The upper vertices are wrong: the upper part of the body is dark red, the lower pale blue."""
    results = made_up(3, sampled=False)
    results.vertex_error = np.where(TEMPLATE[:, 1] > 0.3, 100.0, 0.0)
    picture = draw_errors_on_body(results, FACES, TEMPLATE).astype(int)
    redness = picture[..., 0] - picture[..., 2]
    front = redness[:, : picture.shape[1] // 3]
    assert front[50:250].max() > 30
    assert front[320:520].max() < 10


def test_the_spread_of_a_person_is_where_its_samples_differ():
    """In the picture's lower half, where the camera's y is positive; without samples that cell is left out."""
    picture = draw_person(example("", 0.0), FACES, "", np.where(TEMPLATE[:, 1] > 0, 0.1, 0.0)).astype(int)
    without = draw_person(example("", 0.0), FACES, "", None)
    heat = picture[:, without.shape[1] : -100]  # the scale is at the right
    redness = heat[..., 0] - heat[..., 2]
    assert redness[200:380].max() > 30
    assert redness[:180].max() < 10
    np.testing.assert_array_equal(picture[:, : without.shape[1] - 10], without[:, :-10])
