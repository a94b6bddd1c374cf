"""A check of BEDLAM's animations and annotations, with the readers that training uses. Nothing is changed.

Source: Black et al., BEDLAM: A Synthetic Dataset of Bodies Exhibiting Detailed Lifelike Animated Motion, CVPR 2023.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from mega.bodies.smplh import GENDERS
from mega.external_files import require
from mega_common.files import write_json

_UNUSED = ("openpose", "gtkps", "pose_world", "trans_cam", "cam_int", "cam_ext")  # fields that training does not read


def check_bedlam(animations: str | None, annotations: Iterable[str] = (), report: str | None = None) -> int:
    """Read every file and print what it holds and everything that is wrong with it.

    Args:
        animations: folder of `.npz` at any depth; None for none.
        annotations: files, or folders of `.npz`, of people in pictures.
        report: `.json` that gets the result for every file; None for none.

    Returns the number of files with errors. Raises FileNotFoundError if a file or folder is missing or holds no `.npz`.
    """
    results: dict[str, str] = {}
    wrong = 0
    if animations is not None:
        wrong += _check_all(Path(animations), check_animation, results, is_motion=_is_motion(Path(animations)))
    for place in annotations:
        wrong += _check_all(Path(place), check_annotations, results)
    if report is not None:
        write_json(Path(report), {"wrong": wrong, "files": results})
    return wrong


def check_animation(file: Path) -> Counter:
    """Number of frames, and 1 for the gender. Raises ValueError or OSError as `read_motion`."""
    from mega.data.motions import read_motion  # it imports this package

    poses, _, gender = read_motion(file, check_unused=True)
    return Counter({"frames": len(poses), GENDERS[gender]: 1})


def check_annotations(file: Path) -> Counter:
    """Number of people, of those in pictures that are stored rotated, and of each gender.

    Raises ValueError as `SMPLAnnotations.load`.
    """
    from mega.data.smpl_annotations import SMPLAnnotations  # it imports this package

    people = SMPLAnnotations.load(file, also=_UNUSED)
    rotated = sum("closeup" in name for name in people.imgname.tolist())
    counts = Counter({"people": len(people), "in pictures stored rotated (closeup)": rotated})
    return counts + Counter(people.gender.tolist())


def _is_motion(folder: Path) -> Callable[[Path], bool]:
    return lambda file: "shape" not in file.relative_to(folder).as_posix()


def _check_all(
    place: Path,
    check: Callable[[Path], Counter],
    results: dict[str, str],
    is_motion: Callable[[Path], bool] = lambda file: True,
) -> int:
    """Check a file or every `.npz` below a folder, print and add to `results`, and return how many are wrong."""
    if not place.is_dir():
        require(place)
    files = sorted(place.rglob("*.npz")) if place.is_dir() else [place]
    if not files:
        raise FileNotFoundError(f"There are no .npz files in {place}.")
    totals, others, wrong = Counter(), [], []
    for file in tqdm(files, desc=str(place), unit="file"):
        if not is_motion(file):
            results[str(file)] = "not a motion, its path holds `shape`"
            others.append(file)
            continue
        try:
            counts = check(file)
        except (OSError, ValueError) as error:
            results[str(file)] = "wrong: " + str(error).removeprefix(f"{file}: ").removeprefix(f"{file} ")
            wrong.append(file)
        else:
            totals += counts
            results[str(file)] = _as_text(counts)
    fine = len(files) - len(others) - len(wrong)
    print(f"{place}: {len(files)} files, {fine} fine, {len(others)} not motions, {len(wrong)} wrong")
    print(_as_text(totals), *(f"  {file}: {results[str(file)]}" for file in others + wrong), sep="\n")
    return len(wrong)


def _as_text(counts: Counter) -> str:
    return "  " + ", ".join(f"{n} {what}" for what, n in counts.items())
