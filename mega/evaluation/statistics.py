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
_KINDS = ("best_of", "mean_of", "likeliest_of")
DRAWS, LEVEL, BINS = 2000, 0.95, 10
_CHUNK = 4_000_000  # people resampled at once, 32 MB


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


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """Confidence interval (low, high) of the mean of values (n,); NaNs are left out, (NaN, NaN) below two values."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return _interval(_resampled_sums(values[:, None], seed, draws)[:, 0] / max(len(values), 1), len(values), level)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of a - b over pairs (n,), and its interval (low, high); pairs with a NaN are left out."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"only values of the same people can be paired, but the shapes are {a.shape} and {b.shape}")
    difference = a - b
    return _mean(difference), *bootstrap_interval(difference)


def summarise(columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{column: {"mean", "median", "low", "high", "n"}} of columns {name: (P,)}; n is the number of known values.

    Columns with the same gaps are resampled together, which saves time.
    """
    columns = {name: np.asarray(column, float) for name, column in columns.items()}
    alike: dict[bytes, list[str]] = defaultdict(list)
    for name, column in columns.items():
        alike[np.isfinite(column).tobytes()].append(name)
    found = {}
    for names in alike.values():
        known = np.isfinite(columns[names[0]])
        values = np.stack([columns[name][known] for name in names], axis=1)  # (n, C)
        means = _resampled_sums(values, seed=0, draws=DRAWS) / max(len(values), 1)
        for c, name in enumerate(names):
            low, high = _interval(means[:, c], len(values))
            median = float(np.median(values[:, c])) if len(values) else np.nan
            found[name] = {"mean": _mean(values[:, c]), "median": median, "low": low, "high": high, "n": len(values)}
    return {name: found[name] for name in columns}


def by_visibility(results: Results) -> dict[str, dict[str, float]]:
    """{"all", "visible", "hidden": {"error", "spread", "n"}}: means over n joints of all people, mm.

    Empty without joint errors; only "all" without visibility; spread is NaN without samples.
    """
    if results.joint_error is None:
        return {}
    spread = results.joint_spread
    return {
        name: {
            "error": _mean(results.joint_error[chosen]),
            "spread": np.nan if spread is None else _mean(spread[chosen]),
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
    if results.joint_spread is not None and results.joint_error is not None:
        known = np.isfinite(results.joint_spread) & np.isfinite(results.joint_error)
        found["joints"] = {
            name: _group(results.joint_spread, results.joint_error, chosen & known)
            for name, chosen in _joint_groups(results).items()
        }
    if "spread/std" in results.columns:
        std = np.asarray(results.columns["spread/std"], float)[:, None]
        people = {}
        for protocol in protocols_of(results):
            error = np.asarray(results.columns.get(f"deterministic/{protocol}/PVE", np.full(len(std), np.nan)))[:, None]
            people[protocol] = _correlations(std, error, np.isfinite(std) & np.isfinite(error))
        found["people"] = people
    return found


def protocols_of(results: Results) -> list[str]:
    """Names of the protocols in the columns, in their order."""
    parts = [column.split("/") for column in results.columns]
    return list(dict.fromkeys(part[1] for part in parts if len(part) == 3 and part[1] != "2d"))


def variants_of(columns: Iterable[str]) -> list[str]:
    """Variants in the columns: deterministic, best_of_1, best_of_5, …, mean_of_1, …, likeliest_of_25."""

    def place(variant: str) -> tuple[int, int]:
        kind, _, count = variant.rpartition("_")
        return (_KINDS.index(kind) + 1, int(count)) if kind in _KINDS else (0, 0)

    return sorted({column.split("/")[0] for column in columns if column.count("/") == 2}, key=place)


def variant_title(variant: str) -> str:
    """best_of_5 -> best of 5; for a single sample all three kinds are the same."""
    return "one sample" if variant.endswith("_of_1") else variant.replace("_", " ")


def shown_variants(columns: Iterable[str]) -> list[str]:
    """As `variants_of`, with a single sample listed once."""
    titles: dict[str, str] = {}
    for variant in variants_of(columns):
        titles.setdefault(variant_title(variant), variant)
    return list(titles.values())


def _joint_groups(results: Results) -> dict[str, np.ndarray]:
    """{"all", and with known visibility "visible", "hidden": (P, J) bool}."""
    groups = {"all": np.ones(results.joint_error.shape, bool)}
    if results.joint_visible is not None:
        visible = np.asarray(results.joint_visible, bool)
        groups |= {"visible": visible, "hidden": ~visible}
    return groups


def _group(spread: np.ndarray, error: np.ndarray, chosen: np.ndarray) -> dict:
    return {
        "n": int(chosen.sum()),
        "curve": _curve(spread, error, chosen),
        **_correlations(spread, error, chosen),
    }


def _curve(spread: np.ndarray, error: np.ndarray, chosen: np.ndarray) -> list[dict[str, float]]:
    """Mean spread and error in bins of equal counts, of the chosen (P, J)."""
    people = np.nonzero(chosen)[0]
    order = np.argsort(spread[chosen], kind="stable")
    bins = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)] if len(order) else []
    sums = np.zeros((len(spread), 2 * len(bins)))  # for each person: sum and number of the errors in each bin
    for b, part in enumerate(bins):
        np.add.at(sums[:, 2 * b], people[part], error[chosen][part])
        np.add.at(sums[:, 2 * b + 1], people[part], 1)
    drawn = _resampled_sums(sums, seed=0, draws=DRAWS)
    curve = []
    for b, part in enumerate(bins):
        with np.errstate(invalid="ignore"):
            means = drawn[:, 2 * b] / drawn[:, 2 * b + 1]
        low, high = _interval(means, len(np.unique(people[part])))
        row = {"spread": spread[chosen][part].mean(), "error": error[chosen][part].mean()}
        curve.append({**{k: float(v) for k, v in row.items()}, "low": low, "high": high, "n": len(part)})
    return curve


def _correlations(x: np.ndarray, y: np.ndarray, chosen: np.ndarray) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's correlation of the chosen (P, J), with intervals over people."""
    people = np.nonzero(chosen)[0]
    x, y = x[chosen], y[chosen]
    return {
        "pearson": _correlation(x, y, people, len(chosen)),
        "spearman": _correlation(rankdata(x), rankdata(y), people, len(chosen)),
    }


def _correlation(x: np.ndarray, y: np.ndarray, people: np.ndarray, count: int) -> dict[str, float]:
    """{"value", "low", "high"} of pairs (n,) that belong to the `people` (n,), numbers below `count`."""
    if len(x) == 0:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    x, y = x - x.mean(), y - y.mean()
    products = (np.ones(len(x)), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(people, product, count) for product in products], axis=1)  # (count, 6)
    low, high = _interval(_correlation_of_sums(_resampled_sums(sums, seed=0, draws=DRAWS)), len(np.unique(people)))
    return {"value": float(_correlation_of_sums(sums.sum(axis=0))), "low": low, "high": high}


def _correlation_of_sums(sums: np.ndarray) -> np.ndarray:
    """Correlation (...) from sums (..., 6) of 1, x, y, x², y², xy; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variances = (xx / n - (x / n) ** 2, yy / n - (y / n) ** 2)
        tiny = 1e-12 * np.stack([xx / n, yy / n])  # a variance of zero, after rounding
        valid = (variances[0] > tiny[0]) & (variances[1] > tiny[1])
        return np.where(valid, (xy / n - x * y / n**2) / np.sqrt(variances[0] * variances[1]), np.nan)


def _resampled_sums(values: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Bootstrap: sums (draws, C) of values (n, C) over n rows drawn with replacement."""
    n = len(values)
    if n == 0:
        return np.full((draws, values.shape[1]), np.nan)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // n)
    sums = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        rows = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
        sums.append(times.astype(float) @ values)
    return np.concatenate(sums)


def _interval(statistics: np.ndarray, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of bootstrapped statistics (draws,) of n values or people."""
    statistics = statistics[np.isfinite(statistics)]
    if n < 2 or len(statistics) == 0:
        return np.nan, np.nan
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan
