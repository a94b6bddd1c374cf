"""What an evaluation found, person by person, and the file it is kept in.

`per_sample.csv` has a row a person: image, person, and a column for each error, named VARIANT/PROTOCOL/METRIC, in mm:

    deterministic/coco17/PVE     of the deterministic prediction
    best_of_5/coco17/PVE         the least of the first 5 samples, each metric its own best (published)
    mean_of_5/coco17/PVE         of the mean of the first 5 samples
    likeliest_of_25/coco17/PVE   of the sample that the model itself finds likeliest
    deterministic/2d/keypoints   mean distance of visible keypoints, in percent of the box's longer side
    spread/apd                   mean distance of the same vertex in two samples, mm
    spread/std                   standard deviation of where the samples put a vertex, mean over vertices, mm
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

METRICS = ("PVE", "MPJPE", "PA-MPJPE", "PA-PVE")
PER_SAMPLE = "per_sample.csv"
_DECIMALS = 3


@dataclass
class Results:
    """P people.

    Attributes:
        images: (P,) names of the pictures; persons: (P,) number of the person in the picture.
        columns: {column of `per_sample.csv`: (P,) float}; NaN where a number does not exist.
        joint_names: (J,) of the three arrays that follow.
        joint_error: (P, J) mm, of the deterministic prediction, after the roots are brought together.
        joint_spread: (P, J) mm, standard deviation over the samples; None without samples.
        joint_visible: (P, J) bool.
        vertex_error: (V,) mm, mean over people, as joint_error; vertex_spread: (V,) mm, or None.
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
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def to_csv(self) -> str:
        """The text of `per_sample.csv`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "person", *self.columns])
        values = [[f"{value:.{_DECIMALS}f}" for value in column] for column in self.columns.values()]
        writer.writerows(zip(self.images, self.persons, *values, strict=True))
        return text.getvalue()

    @classmethod
    def read_csv(cls, path: str | Path) -> Results:
        """The columns of a `per_sample.csv`.

        Raises FileNotFoundError, or ValueError that says what is wrong with the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: it is what test_mega.py leaves in its output folder")
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if header[:2] != ["image", "person"] or not rows:
            raise ValueError(f"{path} is not a {PER_SAMPLE} of test_mega.py, or holds nobody")
        try:
            images, persons, *values = zip(*rows, strict=True)
            columns = [np.array(column, float) for column in values]
            return cls(np.array(images), np.array(persons, int), dict(zip(header[2:], columns, strict=True)))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
