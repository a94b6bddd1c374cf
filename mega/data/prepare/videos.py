"""Extract from videos the frames that an annotation file names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from tqdm import tqdm

from mega.external_files import require
from mega_common.files import read_arrays, write_json, write_whole


@dataclass(frozen=True)
class Naming:
    """How the name of a picture gives its video and its frame.

    Attributes:
        patterns: regular expressions for the whole name, of which the first match is used. The group `frame` is the
            number of the frame; `video` may refer to all groups.
        video: template of the video's path, with {groups}. An underscore in the name may be a space in the path.
        first_frame: number of a video's first frame.
    """

    patterns: tuple[str, ...]
    video: str
    first_frame: int = 1

    def frame_index(self, imgname: str) -> int:
        """From 0. Raises ValueError if the name does not fit."""
        index = int(self._groups(imgname)["frame"]) - self.first_frame
        if index < 0:
            raise ValueError(f"the number of the frame is below that of the first, {self.first_frame}")
        return index

    def videos(self, imgname: str) -> list[str]:
        """Paths at which the video may be, the likeliest first. Raises ValueError if the name does not fit."""
        groups = self._groups(imgname)
        spaced = {name: value.replace("_", " ") for name, value in groups.items()}
        try:
            return list(dict.fromkeys(self.video.format(**g) for g in (groups, spaced)))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"dataset.video={self.video} cannot be filled in: {error!r}") from error

    def _groups(self, imgname: str) -> dict[str, str]:
        for pattern in self.patterns:
            if match := re.fullmatch(pattern, imgname):
                return {name: value or "" for name, value in match.groupdict().items()}
        raise ValueError("none of dataset.patterns fits the name")


def extract_pictures(
    labels: str,
    videos: str,
    patterns: Sequence[str],
    video: str,
    first_frame: int = 1,
    pictures: str | None = None,
    quality: int = 95,
) -> int:
    """Write the pictures that `labels` names, as JPEG, and `*_report.json` next to the labels.

    Existing pictures are kept, so the same command resumes an interrupted run.

    Args:
        labels: annotation file with `imgname`.
        videos: folder of the videos.
        patterns, video, first_frame: see `Naming`.
        pictures: folder that `imgname` is relative to; None for that of the labels.
        quality: of the JPEGs, up to 100.

    Returns the number of problems, each printed with its file: names that do not match, videos that are missing,
    unreadable or too short.

    Raises FileNotFoundError without labels or videos, ValueError if the labels cannot be read or a pattern is invalid.
    """
    _check_patterns(patterns)
    target, naming = Path(pictures or Path(labels).parent), Naming(tuple(patterns), video, first_frame)
    names = _read_names(Path(labels))
    if not Path(videos).is_dir():
        raise FileNotFoundError(
            f"The folder of the videos {videos} is missing: unpack them there or set dataset.videos."
        )
    missing = [name for name in names if not (target / name).is_file()]
    wanted, problems = _by_video(missing, naming, Path(videos))
    counts = {}
    with tqdm(total=sum(map(len, wanted.values())), desc="extracting", unit="picture") as progress:
        for file, frames in wanted.items():
            counts[str(file)] = 0
            try:
                for index, image in _frames_of(file, frames.keys()):
                    for name in frames[index]:
                        _write_picture(target / name, image, quality)
                        counts[str(file)] += 1
                    progress.update()
            except ValueError as error:
                problems.append(str(error))
    extracted, there = sum(counts.values()), len(names) - len(missing)
    summary = {"named": len(names), "there before": there, "extracted": extracted, "problems": problems}
    write_json(Path(labels).with_name(f"{Path(labels).stem}_report.json"), summary | {"videos": counts})
    print(f"{len(names)} pictures named, {there} were there, {extracted} extracted", *problems, sep="\n")
    return len(problems)


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"dataset.patterns: {pattern} is no regular expression: {error}.") from error
        if "frame" not in groups:
            raise ValueError(f"dataset.patterns: {pattern} has no group (?P<frame>…).")


def _read_names(labels: Path) -> list[str]:
    """The names of the pictures, each once."""
    require(labels)
    arrays = read_arrays(labels, ("imgname",))
    if "imgname" not in arrays:
        raise ValueError(f"{labels} lacks the field imgname.")
    return list(dict.fromkeys(arrays["imgname"].reshape(-1).astype(str).tolist()))


def _by_video(names: Sequence[str], naming: Naming, folder: Path) -> tuple[dict[Path, dict[int, list[str]]], list[str]]:
    """{video: {frame from 0: names}} of the pictures that can be extracted, and the problems of the others."""
    wanted: dict[Path, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    strange: dict[str, list[str]] = defaultdict(list)
    for name in names:
        try:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError("the name leads out of the folder of the pictures")
            index, places = naming.frame_index(name), naming.videos(name)
        except ValueError as error:
            strange[str(error)].append(name)
            continue
        file = next((folder / place for place in places if (folder / place).is_file()), None)
        if file is None:
            strange[f"the video {folder / places[-1]} is missing"].append(name)
        else:
            wanted[file][index].append(name)
    problems = [f"{len(found)} pictures, the first is {found[0]}: {what}." for what, found in strange.items()]
    return wanted, problems


def _frames_of(file: Path, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(index, BGR picture) in the order of the video, which is read from its start: seeking is not exact.

    Raises ValueError, naming the video, where it ends or cannot be read.
    """
    capture = cv2.VideoCapture(str(file))
    try:
        position = -1
        for done, index in enumerate(sorted(indices)):
            image = None
            while position < index and capture.grab():
                position += 1
            if position == index:
                _, image = capture.retrieve()
            if image is None:
                raise ValueError(
                    f"{file} cannot be read at frame {index} (from 0), it gave {position + 1} frames: "
                    f"{len(indices) - done} pictures of it are not made."
                )
            yield index, image
    finally:
        capture.release()


def _write_picture(path: Path, image: np.ndarray, quality: int) -> None:
    ok, data = cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"{path} cannot be encoded.")
    write_whole(path, data.tobytes())
