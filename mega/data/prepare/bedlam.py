"""BEDLAM's animations and annotations: what is there, and what is wrong with it. Nothing is changed.

Source: Black et al., BEDLAM: A Synthetic Dataset of Bodies Exhibiting Detailed Lifelike Animated Motion, CVPR 2023.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mega.bodies.smplh import N_BETAS, gender_name
from mega.external_files import require
from mega_common.atomic_io import write_json
from mega_common.restricted_pickle import read_arrays

_POSED = 66  # the root and 21 joints, in SMPL, SMPL-H and SMPL-X alike
_POSES, _SHAPES = ("pose_cam", "pose"), ("shape", "betas")
_MOTION = ("poses", "betas", "gender", "trans")
_PEOPLE = (
    *("imgname", "center", "scale", "gender", *_POSES, *_SHAPES, "part", "openpose", "gtkps"),
    *("pose_world", "trans_cam", "cam_int", "cam_ext"),
)


class NotAMotionError(Exception):
    """The file lies among the animations, but is not meant to be one."""


def check_bedlam(animations: str | None, annotations: Iterable[str] = (), report: str | None = None) -> int:
    """Read every file and print what is there and what is wrong.

    Args:
        animations: folder of `.npz` at any depth; None for none.
        annotations: files, or folders of `.npz`, with people in pictures.
        report: `.json` that gets what is said of every file; None for none.

    Returns:
        How many files are wrong; each is printed.

    Raises:
        FileNotFoundError: if a file or folder is not there or holds no `.npz`.
    """
    said: dict[str, str] = {}
    wrong = 0
    if animations is not None:
        folder = Path(animations)
        wrong += _check_all(folder, lambda file: check_animation(file, folder), said)
    for place in annotations:
        wrong += _check_all(Path(place), check_annotations, said)
    if report is not None:
        write_json(Path(report), {"wrong": wrong, "files": said})
    return wrong


def check_animation(file: Path, folder: Path) -> Counter:
    """Counts of an animation below `folder`: frames, and 1 for its gender.

    Raises:
        NotAMotionError: if its path below the folder holds `shape`.
        ValueError: says everything that is wrong with it.
    """
    if "shape" in file.relative_to(folder).as_posix():
        raise NotAMotionError("not a motion, its path holds `shape`")
    arrays = _read(file)
    wrong = [f"lacks {name}" for name in ("poses", "betas", "gender") if name not in arrays]
    frames = len(arrays["poses"]) if arrays.get("poses", np.float64(0)).ndim else 0
    if "poses" in arrays:
        wrong += _wrong_rows("poses", arrays["poses"], frames, _POSED) if frames else ["poses holds no frames"]
    if "trans" in arrays:
        wrong += _wrong_rows("trans", arrays["trans"], frames, 3)
    if "betas" in arrays:
        betas = arrays["betas"]  # one body a sequence, as `mega.data.motions.read_motion` wants it
        if betas.ndim != 1 or len(betas) < N_BETAS:
            wrong.append(f"betas has shape {betas.shape}, expected ({N_BETAS},) or more")
        else:
            wrong += _wrong_rows("betas", betas[None], 1, N_BETAS)
    genders, unknown = _genders(arrays.get("gender", np.empty(0)))
    if "gender" in arrays and arrays["gender"].size != 1:
        wrong.append(f"gender has shape {arrays['gender'].shape}, expected one word")
    if wrong or unknown:
        raise ValueError("; ".join(wrong + unknown))
    return Counter(frames=frames) + genders


def check_annotations(file: Path) -> Counter:
    """Counts of a file of people in pictures: people, their genders, and those in pictures that are stored lying.

    Raises ValueError that says everything that is wrong with it.
    """
    arrays = read_arrays(file, _PEOPLE)
    wrong = [f"lacks {name}" for name in ("imgname", "center", "scale") if name not in arrays]
    for choice in (_POSES, _SHAPES):
        if not set(choice) & arrays.keys():
            wrong.append(f"lacks {' or '.join(choice)}")
    people = len(np.atleast_1d(arrays.get("imgname", np.empty(0))))
    lengths = {"center": 2, **dict.fromkeys(_POSES, _POSED), **dict.fromkeys(_SHAPES, N_BETAS)}
    for name, array in arrays.items():
        wrong += _wrong_rows(name, array, people, lengths.get(name, 0))
    scale = arrays.get("scale", np.ones(1))
    if scale.dtype.kind in "fiu" and (scale <= 0).any():
        wrong.append(f"scale is not above 0 in {int((scale <= 0).sum())} rows")
    genders, unknown = _genders(arrays.get("gender", np.empty(0)))
    if wrong or unknown:
        raise ValueError("; ".join(wrong + unknown))
    lying = sum("closeup" in name for name in arrays["imgname"].astype(str).reshape(-1).tolist())
    return Counter({"people": people, "in pictures stored lying (closeup)": lying}) + genders


def _check_all(place: Path, check: Callable[[Path], Counter], said: dict[str, str]) -> int:
    """Check a file or every `.npz` below a folder, print, note in `said`, and return how many are wrong."""
    if not place.is_dir():
        require(place)
    files = sorted(place.rglob("*.npz")) if place.is_dir() else [place]
    if not files:
        raise FileNotFoundError(f"There are no .npz files in {place}.")
    totals, others, wrong = Counter(), [], []
    for file in tqdm(files, desc=str(place), unit="file"):
        try:
            counts = check(file)
            totals += counts
            said[str(file)] = _told(counts)
        except NotAMotionError as reason:
            said[str(file)] = str(reason)
            others.append(file)
        except ValueError as error:
            said[str(file)] = f"wrong: {error}"
            wrong.append(file)
    fine = len(files) - len(others) - len(wrong)
    print(
        f"{place}: {len(files)} files, {fine} fine, {len(others)} not motions, {len(wrong)} wrong",
        _told(totals),
        sep="\n",
    )
    print(*(f"  {file}: {said[str(file)]}" for file in others + wrong), sep="\n")
    return len(wrong)


def _told(counts: Counter) -> str:
    return "  " + ", ".join(f"{n} {what}" for what, n in counts.items())


def _read(file: Path) -> dict[str, np.ndarray]:
    """What there is of a motion; raises ValueError if the file cannot be read."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files if name in _MOTION}
    except (zipfile.BadZipFile, zlib.error, AttributeError, TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"cannot be read as arrays without pickle: {error}") from error


def _wrong_rows(name: str, array: np.ndarray, rows: int, least: int) -> list[str]:
    """What is wrong with an array that should have so many rows, each of at least so many numbers; 0 for any."""
    if array.shape[:1] != (rows,):
        return [f"{name} has shape {array.shape}, expected {rows} rows"]
    if least and (array.ndim < 2 or array.shape[1] < least or array.dtype.kind not in "fiu"):
        return [f"{name} has shape {array.shape} of {array.dtype}, expected ({rows}, {least}) numbers or more"]
    if array.dtype.kind != "f":
        return []
    bad = np.flatnonzero(~np.isfinite(array.reshape(rows, -1)).all(axis=1))
    return [f"{name} is not finite in {len(bad)} rows, the first is {bad[0]}"] if len(bad) else []


def _genders(column: np.ndarray) -> tuple[Counter, list[str]]:
    """How many of each gender, and what is wrong with the others."""
    known, unknown = Counter(), Counter()
    for gender in np.atleast_1d(column).reshape(-1).tolist():
        try:
            known[gender_name(gender.decode() if isinstance(gender, bytes) else gender)] += 1
        except (UnicodeDecodeError, ValueError):
            unknown[str(gender)] += 1
    return known, [f"gender is {gender!r} in {n} rows" for gender, n in unknown.items()]
