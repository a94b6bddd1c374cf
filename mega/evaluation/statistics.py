"""Per-person errors of an evaluation, the file they are kept in, and their statistics.

`per_sample.csv` has one row per person: image, person, and one column per error, VARIANT/PROTOCOL/METRIC, in mm:

    deterministic/coco17/PVE     of the deterministic prediction
    best_of_5/coco17/PVE         the smallest of the first 5 samples, for each metric separately (as published)
    mean_of_5/coco17/PVE         of the mean of the first 5 samples
    likeliest_of_25/coco17/PVE   of the sample that the model itself finds likeliest
    deterministic/2d/keypoints   mean distance of visible keypoints, in percent of the box's longer side
    spread/apd                   mean distance of the same vertex in two samples, mm
    spread/std                   standard deviation of a vertex over the samples, mean over vertices, mm

Intervals are percentile bootstraps over people (Efron & Tibshirani, *An Introduction to the Bootstrap*, chapter 13):
people are resampled with replacement, together with everything that belongs to a person, from a fixed seed. People
count as independent, so for frames of a few videos the true intervals are wider.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from mega_common.file_kinds import unreadable

METRICS = ("PVE", "MPJPE", "PA-MPJPE", "PA-PVE")
PER_SAMPLE = "per_sample.csv"
_RESAMPLES, _BINS = 2000, 10


@dataclass
class Results:
    """P people.

    Attributes:
        images: (P,) names of the images; persons: (P,) number of the person in the image.
        columns: {column of `per_sample.csv`: (P,) float}; NaN where a number does not exist.
        joint_names: (J,) names for the three arrays that follow.
        joint_error: (P, J) mm, of the deterministic prediction, roots aligned.
        joint_spread: (P, J) mm, standard deviation over the samples; None without samples.
        joint_visible: (P, J) bool.
        vertex_error, vertex_spread: (V,) mm, means over people, as above.
    """

    images: np.ndarray
    persons: np.ndarray
    columns: dict[str, np.ndarray]
    joint_names: tuple[str, ...] = ()
    joint_error: np.ndarray | None = None
    joint_spread: np.ndarray | None = None
    joint_visible: np.ndarray | None = None
    vertex_error: np.ndarray | None = None
    vertex_spread: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to_csv(self) -> str:
        """The text of `per_sample.csv`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "person", *self.columns])
        values = [[f"{value:.3f}" for value in column] for column in self.columns.values()]
        writer.writerows(zip(self.images, self.persons, *values, strict=True))
        return text.getvalue()

    @classmethod
    def read_csv(cls, path: str | Path) -> Results:
        """The columns of a `per_sample.csv`.

        Raises FileNotFoundError, or ValueError that says what is wrong with the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: test_mega.py writes it to its output folder")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise unreadable(path, "csv", error) from error
        if header[:2] != ["image", "person"] or not rows:
            raise unreadable(path, "csv", f"it is no {PER_SAMPLE} of test_mega.py, or has no rows")
        try:
            images, persons, *values = zip(*rows, strict=True)
            columns = [np.array(column, float) for column in values]
            return cls(np.array(images), np.array(persons, int), dict(zip(header[2:], columns, strict=True)))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def bootstrap_interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval (low, high) of the mean of values (n,); NaNs are left out, (NaN, NaN) below two values."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return _interval(_resampled_sums(values, seed) / max(len(values), 1), len(values), level)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of a - b over pairs (n,), and its interval (low, high); pairs with a NaN are left out."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"only values of the same people can be paired, but the shapes are {a.shape} and {b.shape}")
    return _mean(a - b), *bootstrap_interval(a - b)


def summarise(columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{column: {"mean", "median", "low", "high", "n"}} of columns {name: (P,)}; n is the number of known values.

    Columns with the same gaps are resampled together, which saves time.
    """
    alike: dict[bytes, list[str]] = defaultdict(list)
    for name, column in columns.items():
        alike[np.isfinite(column).tobytes()].append(name)
    found = {}
    for names in alike.values():
        values = np.stack([columns[name][np.isfinite(columns[name])] for name in names], axis=1)  # (n, C)
        means = _resampled_sums(values) / max(len(values), 1)
        for name, known, resampled in zip(names, values.T, means.T, strict=True):
            low, high = _interval(resampled, len(known))
            median = float(np.median(known)) if len(known) else np.nan
            found[name] = {"mean": _mean(known), "median": median, "low": low, "high": high, "n": len(known)}
    return {name: found[name] for name in columns}


def by_visibility(results: Results) -> dict[str, dict[str, float]]:
    """{"all", "visible", "hidden": {"error", "spread", "n"}}: means over n joints of all people, mm.

    Empty without joint errors; only "all" without visibility; spread is NaN without samples.
    """
    return {
        name: {
            "error": _mean(results.joint_error[chosen]),
            "spread": np.nan if results.joint_spread is None else _mean(results.joint_spread[chosen]),
            "n": int((chosen & np.isfinite(results.joint_error)).sum()),
        }
        for name, chosen in _joint_groups(results).items()
    }


def by_joint(results: Results) -> dict[str, dict[str, float]]:
    """{joint: {"mean", "median", "low", "high", "n", "visible", "hidden", "spread"}}: mm.

    "visible" and "hidden" are the mean errors where the joint is visible and where it is not, "spread" the mean spread;
    NaN where unknown. Empty without joint errors.
    """
    if results.joint_error is None:
        return {}
    table = summarise(dict(zip(results.joint_names, results.joint_error.T, strict=True)))
    groups = _joint_groups(results)
    for j, row in enumerate(table.values()):
        for name in ("visible", "hidden"):
            row[name] = _mean(results.joint_error[groups[name][:, j], j]) if name in groups else np.nan
        row["spread"] = np.nan if results.joint_spread is None else _mean(results.joint_spread[:, j])
    return table


def calibration(results: Results) -> dict:
    """Does the spread of the samples predict the error?

    Returns:
        {"joints": {"all", "visible", "hidden": group}, "people": {protocol: {"pearson", "spearman"}}}, empty without
        samples. A group has "n" joints; "curve": {"spread", "error", "low", "high", "n"}, mm, of bins of equal size,
        sorted by spread; and "pearson", "spearman": {"value", "low", "high"}, between a joint's spread and its error.
        "people" has the correlations between a person's spread/std and PVE. Ranks are computed once over all people,
        not for each bootstrap resample.
    """
    found = {}
    if results.joint_spread is not None:
        known = np.isfinite(results.joint_spread) & np.isfinite(results.joint_error)
        found["joints"] = {}
        for name, chosen in _joint_groups(results).items():
            pairs = (results.joint_spread, results.joint_error, chosen & known)
            curve = _calibration_curve(*pairs)
            found["joints"][name] = {"n": sum(row["n"] for row in curve), "curve": curve, **_correlations(*pairs)}
    if "spread/std" in results.columns:
        std = results.columns["spread/std"][:, None]
        errors = {name: results.columns[f"deterministic/{name}/PVE"][:, None] for name in protocols_of(results)}
        found["people"] = {
            name: _correlations(std, error, np.isfinite(std) & np.isfinite(error)) for name, error in errors.items()
        }
    return found


def protocols_of(results: Results) -> list[str]:
    """Names of the protocols in the columns, in their order."""
    parts = [column.split("/") for column in results.columns]
    return list(dict.fromkeys(part[1] for part in parts if len(part) == 3 and part[1] != "2d"))


def shown_variants(columns: Iterable[str]) -> dict[str, str]:
    """{variant: title} of the columns in the order of reports: deterministic, best_of_1, best_of_5, …, mean_of_5, ….

    Of a single sample, best, mean and likeliest are the same: only best_of_1 is kept, as "one sample".
    """

    def place(variant: str) -> tuple[int, int]:
        kind, _, count = variant.rpartition("_")
        return ("", "best_of", "mean_of", "likeliest_of").index(kind), int(count) if kind else 0

    variants = {column.split("/")[0] for column in columns if column.count("/") == 2} - {"mean_of_1", "likeliest_of_1"}
    return {v: "one sample" if v == "best_of_1" else v.replace("_", " ") for v in sorted(variants, key=place)}


def _joint_groups(results: Results) -> dict[str, np.ndarray]:
    """{"all", and with known visibility "visible", "hidden": (P, J) bool}; empty without joint errors."""
    if results.joint_error is None:
        return {}
    groups = {"all": np.ones(results.joint_error.shape, bool)}
    if results.joint_visible is not None:
        visible = np.asarray(results.joint_visible, bool)
        groups |= {"visible": visible, "hidden": ~visible}
    return groups


def _calibration_curve(spread: np.ndarray, error: np.ndarray, chosen: np.ndarray) -> list[dict[str, float]]:
    """Mean spread and error in bins of equal counts, of the chosen (P, J)."""
    person, _ = np.nonzero(chosen)
    spread, error = spread[chosen], error[chosen]
    bins = min(_BINS, len(error))
    bin_of = (rankdata(spread, "ordinal") - 1) * bins // max(len(error), 1)
    sums, counts = np.zeros((2, len(chosen), bins))  # of the errors of each person in each bin
    np.add.at(sums, (person, bin_of), error)
    np.add.at(counts, (person, bin_of), 1)
    with np.errstate(invalid="ignore"):
        means = _resampled_sums(sums) / _resampled_sums(counts)
    curve = []
    for b in range(bins):
        inside = bin_of == b
        low, high = _interval(means[:, b], np.count_nonzero(counts[:, b]))
        of_bin = {"spread": float(spread[inside].mean()), "error": float(error[inside].mean())}
        curve.append(of_bin | {"low": low, "high": high, "n": int(inside.sum())})
    return curve


def _correlations(x: np.ndarray, y: np.ndarray, chosen: np.ndarray) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's correlation of the chosen (P, J): {"value", "low", "high"}, resampling people."""
    person, _ = np.nonzero(chosen)
    pairs = np.stack([x[chosen], y[chosen]])
    found = {}
    for name, values in (("pearson", pairs), ("spearman", rankdata(pairs, axis=1))):
        a, b = values - values.sum(axis=1, keepdims=True) / max(len(person), 1)  # centred
        products = (np.ones(len(a)), a, b, a * a, b * b, a * b)
        sums = np.stack([np.bincount(person, product, len(chosen)) for product in products], axis=1)  # (P, 6)
        low, high = _interval(_correlation_of_sums(_resampled_sums(sums)), len(np.unique(person)))
        found[name] = {"value": float(_correlation_of_sums(sums.sum(axis=0))), "low": low, "high": high}
    return found


def _correlation_of_sums(sums: np.ndarray) -> np.ndarray:
    """Correlation (...) from sums (..., 6) of 1, x, y, x², y², xy; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_variance, y_variance = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        known = (x_variance > 1e-12 * xx / n) & (y_variance > 1e-12 * yy / n)  # not zero, apart from rounding
        return np.where(known, (xy / n - x * y / n**2) / np.sqrt(x_variance * y_variance), np.nan)


def _resampled_sums(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap: sums (resamples, ...) of values (n, ...) over n rows drawn with replacement."""
    n, random = len(values), np.random.default_rng(seed)
    return np.stack([np.bincount(random.integers(n, size=n), minlength=n) @ values for _ in range(_RESAMPLES)])


def _interval(statistics: np.ndarray, n: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrapped statistics (resamples,) of n values or people."""
    statistics = statistics[np.isfinite(statistics)]
    if n < 2 or len(statistics) == 0:
        return np.nan, np.nan
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan
