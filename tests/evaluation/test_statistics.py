"""Numbers of an evaluation: intervals, differences and calibrations that are known by hand or by theory."""

import numpy as np
import pytest

from mega.evaluation.report import verdict
from mega.evaluation.statistics import (
    Results,
    bootstrap_interval,
    by_joint,
    by_visibility,
    calibration,
    paired_difference,
    summarise,
)
from tests.helpers.results import JOINTS, made_up

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
    found = summarise(results.columns)
    assert (found["a/b/PVE"]["mean"], found["a/b/PVE"]["median"], found["a/b/PVE"]["n"]) == (4.0, 2.5, 4)
    assert (found["a/b/MPJPE"]["mean"], found["a/b/MPJPE"]["median"], found["a/b/MPJPE"]["n"]) == (3.5, 3.5, 2)
    assert list(found) == list(results.columns)


def test_each_column_has_the_interval_that_it_has_alone():
    results = made_up(30, sampled=True)
    results.columns["best_of_5/hips/PVE"][3:9] = np.nan
    for name, row in summarise(results.columns).items():
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
    assert "well calibrated" in verdict(found["all"], by_visibility(results)["all"])


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
    assert "does not predict the error" in verdict(group, by_visibility(results)["all"])


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
