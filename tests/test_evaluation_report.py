"""Reports of evaluations: numbers that are known by hand, and every file of a report."""

import csv
import json
import re
from itertools import dropwhile, takewhile

import cv2
import numpy as np
import pytest
import trimesh

from mega.evaluation.pictures import draw_errors_on_body
from mega.evaluation.report import write_report
from mega.evaluation.results import METRICS, Results
from mega.evaluation.summary import (
    bootstrap_interval,
    by_joint,
    by_visibility,
    calibration,
    paired_difference,
    summarise,
)
from mega.evaluation.text import describe, table, variants_of, verdict
from mega.metrics import COCO17, HIPS, MEGA

JOINTS = ("nose", "left_wrist", "right_wrist")
SAMPLED = ("best_of_1", "best_of_5", "best_of_25", "mean_of_1", "mean_of_5", "mean_of_25", "likeliest_of_25")
BODY = trimesh.creation.icosphere(2, 0.9)
TEMPLATE, FACES = np.asarray(BODY.vertices, np.float32) * [0.3, 1, 0.2], np.asarray(BODY.faces)
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


def made_up(people: int, sampled: bool, seed: int = 0) -> Results:
    random = np.random.default_rng(seed)
    variants = ("deterministic", *(SAMPLED if sampled else ()))
    columns = {
        f"{v}/{p}/{m}": random.gamma(4, 30, people) for v in variants for p in ("coco17", "hips") for m in METRICS
    }
    columns["deterministic/2d/keypoints"] = random.gamma(4, 2, people)
    if sampled:
        columns |= {"spread/apd": random.gamma(4, 10, people), "spread/std": random.gamma(4, 8, people)}
    by_vertex = 100 * np.abs(TEMPLATE[:, 1])
    return Results(
        images=np.array([f"{i}.jpg" for i in range(people)]),
        persons=np.zeros(people, int),
        columns=columns,
        joint_names=JOINTS,
        joint_error=random.gamma(4, 20, (people, 3)),
        joint_spread=random.gamma(4, 10, (people, 3)) if sampled else None,
        joint_visible=random.random((people, 3)) > 0.3,
        vertex_error=by_vertex,
        vertex_spread=by_vertex / 2 if sampled else None,
    )


def example(title: str, bend: float) -> dict:
    placed = (TEMPLATE + np.array([0, 0, 8])).astype(np.float32)
    image = np.full((64, 64, 3), 90, np.uint8)
    prediction = placed + [0, 0, bend] * np.abs(TEMPLATE)
    return {
        "title": title,
        "image": image,
        "prediction": prediction,
        "truth": placed,
        "focal": 240.0,
        "centre": (32, 32),
    }


# Intervals


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(100, 20, 4000)
    error = 1.96 * values.std() / np.sqrt(len(values))
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    random = np.random.default_rng(2)
    inside = [low <= 5 <= high for low, high in (bootstrap_interval(random.normal(5, 3, 60)) for _ in range(300))]
    assert 0.90 <= np.mean(inside) <= 0.98
    random = np.random.default_rng(2)
    inside = [
        low <= 5 <= high for low, high in (bootstrap_interval(random.normal(5, 3, 60), level=0.5) for _ in range(300))
    ]
    assert 0.42 <= np.mean(inside) <= 0.58


def test_intervals_leave_nans_out_and_are_the_same_each_time():
    values = np.random.default_rng(3).gamma(2, 5, 50)
    with_gaps = np.insert(values, [0, 20, 50], np.nan)
    assert bootstrap_interval(with_gaps) == bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan], [3.0], [3.0, np.nan]])
def test_of_one_or_no_value_no_interval_is_claimed(values):
    assert np.isnan(bootstrap_interval(np.array(values))).all()


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_interval(np.full(7, 4.5)) == (4.5, 4.5)


def test_pairs_tell_a_difference_that_is_lost_in_the_spread_of_people():
    random = np.random.default_rng(4)
    a = random.gamma(4, 30, 200)
    b = a - 2 + random.normal(0, 1, 200)
    mean, low, high = paired_difference(a, b)
    assert low < mean < high
    assert 1.7 < low < 2 < high < 2.3
    assert bootstrap_interval(a)[0] < bootstrap_interval(b)[1]  # the two alone cannot be told apart
    back = paired_difference(b, a)
    np.testing.assert_allclose(back, (-mean, -high, -low), atol=1e-9)


def test_pairs_with_a_gap_are_left_out_and_others_refused():
    mean, low, high = paired_difference([5.0, np.nan, 7.0, 9.0], [4.0, 2.0, 6.0, np.nan])
    assert (mean, low, high) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="same people"):
        paired_difference([1.0, 2.0], [1.0])


# Summaries


def test_summary_of_known_numbers():
    results = made_up(4, sampled=False)
    results.columns = {"a/b/PVE": np.array([1.0, 2.0, 3.0, 10.0]), "a/b/MPJPE": np.array([np.nan, 2.0, 5.0, np.nan])}
    found = summarise(results)
    assert (found["a/b/PVE"]["mean"], found["a/b/PVE"]["median"], found["a/b/PVE"]["n"]) == (4.0, 2.5, 4)
    assert (found["a/b/MPJPE"]["mean"], found["a/b/MPJPE"]["median"], found["a/b/MPJPE"]["n"]) == (3.5, 3.5, 2)
    assert list(found) == list(results.columns)


def test_each_column_has_the_interval_that_it_has_alone():
    results = made_up(30, sampled=True)
    results.columns["best_of_5/hips/PVE"][3:9] = np.nan
    for name, row in summarise(results).items():
        assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(results.columns[name])), name


def test_seen_and_hidden_joints_of_known_numbers():
    results = made_up(2, sampled=True)
    results.joint_error = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, np.nan]])
    results.joint_visible = np.array([[True, False, True], [True, False, False]])
    results.joint_spread = np.array([[1.0, 1.0, 1.0], [3.0, 5.0, 1.0]])
    groups = by_visibility(results)
    assert {name: row["n"] for name, row in groups.items()} == {"all": 5, "visible": 3, "hidden": 2}
    assert (groups["visible"]["error"], groups["hidden"]["error"]) == (14 / 3, 11.0)
    assert groups["visible"]["spread"] == pytest.approx(5 / 3)
    rows = by_joint(results)
    assert (rows["nose"]["mean"], rows["nose"]["visible"]) == (5.5, 5.5)
    assert np.isnan(rows["nose"]["hidden"])
    assert (rows["left_wrist"]["hidden"], rows["left_wrist"]["spread"]) == (11.0, 3.0)
    results.joint_visible = None
    assert list(by_visibility(results)) == ["all"]


# Calibration


def of_spread(error_of_spread, people: int = 800) -> Results:
    """Results whose joint errors are made of the spread, with visibility at random."""
    random = np.random.default_rng(5)
    results = made_up(people, sampled=True)
    results.joint_spread = random.gamma(3, 20, (people, 3))
    results.joint_error = error_of_spread(results.joint_spread, random)
    return results


def test_a_spread_from_which_the_errors_are_drawn_is_calibrated():
    """Errors as of a 3D normal distribution with that standard deviation: their mean is 0.921 times it."""

    def drawn(spread, random):
        return np.linalg.norm(random.normal(size=(*spread.shape, 3)) * spread[..., None] / np.sqrt(3), axis=-1)

    results = of_spread(drawn, people=4000)
    found = calibration(results)["joints"]
    for group in found.values():
        ratios = [row["error"] / row["spread"] for row in group["curve"]]
        np.testing.assert_allclose(ratios, 2 * np.sqrt(2 / np.pi) / np.sqrt(3), atol=0.05)
        counts = [row["n"] for row in group["curve"]]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == group["n"]
        assert group["spearman"]["low"] > 0.6
        assert all(row["low"] < row["error"] < row["high"] for row in group["curve"])
    assert found["visible"]["n"] + found["hidden"]["n"] == found["all"]["n"]
    assert "honest" in verdict(found["all"], by_visibility(results)["all"])


def test_a_spread_that_is_the_error_correlates_fully():
    group = calibration(of_spread(lambda spread, _: 3 * spread))["joints"]["all"]
    for kind in ("pearson", "spearman"):
        np.testing.assert_allclose(list(group[kind].values()), 1, atol=1e-6)
    squared = calibration(of_spread(lambda spread, _: spread**2))["joints"]["all"]
    assert squared["spearman"]["value"] == pytest.approx(1)
    assert squared["pearson"]["value"] < 0.97


def test_a_random_spread_tells_nothing_and_the_report_says_so():
    results = of_spread(lambda spread, random: random.gamma(3, 20, spread.shape))
    group = calibration(results)["joints"]["all"]
    assert group["spearman"]["low"] < 0 < group["spearman"]["high"]
    assert "tells nothing" in verdict(group, by_visibility(results)["all"])


def test_intervals_of_correlations_are_over_people():
    """The same person many times over is no more people: the interval is as wide as that of one joint each."""
    random = np.random.default_rng(6)
    results = made_up(100, sampled=True)
    spread, error = random.gamma(3, 20, (100, 1)), random.gamma(3, 20, (100, 1))
    widths = []
    for copies in (1, 3):
        results.joint_names = JOINTS[:copies]
        results.joint_visible = None
        results.joint_spread, results.joint_error = np.tile(spread, copies), np.tile(error, copies)
        pearson = calibration(results)["joints"]["all"]["pearson"]
        widths.append(pearson["high"] - pearson["low"])
    assert widths[0] == pytest.approx(widths[1])


def test_the_correlation_of_people_is_that_of_numpy():
    results = made_up(50, sampled=True)
    std, pve = results.columns["spread/std"], results.columns["deterministic/hips/PVE"]
    found = calibration(results)["people"]["hips"]["pearson"]
    assert found["value"] == pytest.approx(np.corrcoef(std, pve)[0, 1])
    assert found["low"] < found["value"] < found["high"]


def test_without_samples_there_is_no_calibration():
    assert calibration(made_up(5, sampled=False)) == {}


# Words


def test_protocols_in_words():
    assert "17 joints" in describe(COCO17)
    assert "mean of joints 11 and 12" in describe(COCO17)
    assert "mean of all vertices" in describe(MEGA)
    assert "14 joints of the H36M regressor" in describe(HIPS)


def test_variants_in_their_order():
    columns = ["likeliest_of_25/x/PVE", "mean_of_5/x/PVE", "best_of_10/x/PVE", "best_of_5/x/PVE", "deterministic/x/PVE"]
    expected = ["deterministic", "best_of_5", "best_of_10", "mean_of_5", "likeliest_of_25"]
    assert variants_of([*columns, "spread/apd"]) == expected


def test_tables_line_up_as_text():
    lines = table(("a", "number"), [("long name", "1.0"), ("b", "1,234.0")]).splitlines()
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
    by_protocol = rows_of(report, "One prediction a person")
    assert len(by_protocol) >= 8
    for protocol, metric, mean, _, median, n in by_protocol[:8]:
        values = results.columns[f"deterministic/{protocol}/{metric}"]
        assert (mean, median, n) == (f"{values.mean():.1f}", f"{np.median(values):.1f}", str(people))
    assert ("## Samples" in report, "## Is the doubt" in report) == (sampled, sampled)
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
    assert "Where the time went" not in report


def test_a_report_of_unknown_visibility(tmp_path):
    results = made_up(20, sampled=True)
    results.joint_visible = None
    results.joint_error[3, 1] = np.nan
    write_report(tmp_path, results, ABOUT, FACES, TEMPLATE, [])
    report = (tmp_path / "report.md").read_text()
    assert [row[0] for row in rows_of(report, "Seen and hidden joints")] == ["all"]
    assert "where hidden" not in report
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
