"""Extract from videos the frames that an annotation file names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from tqdm import tqdm

from mega.external_files import require
from mega_common.files import as_names, read_arrays, write_json, write_whole


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
        patterns: regular expressions for the whole name of a picture, of which the first match is used. The group
            `frame` is the number of the frame; `video` may refer to all groups.
        video: template of the video's path, with {groups}. An underscore in the name may be a space in the path.
        first_frame: number of a video's first frame.
        pictures: folder that `imgname` is relative to; None for that of the labels.
        quality: JPEG quality of the pictures, up to 100.

    Returns the number of problems, each printed with its file: names that do not match, videos that are missing,
    unreadable or too short.

    Raises FileNotFoundError without labels or videos, ValueError if the labels cannot be read or a pattern is invalid.
    """
    compiled = [_compile(pattern) for pattern in patterns]
    require(labels)
    imgname = read_arrays(Path(labels), ("imgname",)).get("imgname")
    if imgname is None:
        raise ValueError(f"{labels} lacks the field imgname.")
    if not Path(videos).is_dir():
        raise FileNotFoundError(
            f"The folder of the videos {videos} is missing: unpack them there or set dataset.videos."
        )
    names = list(dict.fromkeys(as_names(imgname.reshape(-1)).tolist()))
    target = Path(pictures or Path(labels).parent)
    missing = [name for name in names if not (target / name).is_file()]
    wanted: dict[Path, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))  # video -> frame -> names
    unknown: dict[str, list[str]] = defaultdict(list)  # problem -> names
    for name in missing:
        try:
            file, frame = _locate(name, compiled, Path(videos), video, first_frame)
        except ValueError as error:
            unknown[str(error)].append(name)
        else:
            wanted[file][frame].append(name)
    problems = [f"{len(found)} pictures, the first is {found[0]}: {what}." for what, found in unknown.items()]
    counts = dict.fromkeys(map(str, wanted), 0)
    with tqdm(total=sum(map(len, wanted.values())), desc="extracting", unit="picture") as progress:
        for file, frames in wanted.items():
            try:
                for frame, image in _read_frames(file, frames):
                    for name in frames[frame]:
                        ok, data = cv2.imencode(Path(name).suffix, image, [cv2.IMWRITE_JPEG_QUALITY, quality])
                        if not ok:
                            raise ValueError(f"{target / name} cannot be encoded.")
                        write_whole(target / name, data.tobytes())
                        counts[str(file)] += 1
                    progress.update()
            except ValueError as error:
                problems.append(str(error))
    extracted, there = sum(counts.values()), len(names) - len(missing)
    report = {"named": len(names), "there before": there, "extracted": extracted, "problems": problems}
    write_json(Path(labels).with_name(f"{Path(labels).stem}_report.json"), report | {"videos": counts})
    print(f"{len(names)} pictures named, {there} were there, {extracted} extracted", *problems, sep="\n")
    return len(problems)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"dataset.patterns: {pattern} is no regular expression: {error}.") from error
    if "frame" not in compiled.groupindex:
        raise ValueError(f"dataset.patterns: {pattern} has no group (?P<frame>…).")
    return compiled


def _locate(
    imgname: str, patterns: Sequence[re.Pattern[str]], videos: Path, video: str, first_frame: int
) -> tuple[Path, int]:
    """The video of a picture, and its frame from 0; arguments as for `extract_pictures`.

    Raises ValueError if the name does not fit or the video is missing.
    """
    if PurePosixPath(imgname).is_absolute() or ".." in PurePosixPath(imgname).parts:
        raise ValueError("the name leads out of the folder of the pictures")
    match = next((found for pattern in patterns if (found := pattern.fullmatch(imgname))), None)
    if match is None:
        raise ValueError("none of dataset.patterns fits the name")
    groups = match.groupdict(default="")
    frame = int(groups["frame"]) - first_frame
    if frame < 0:
        raise ValueError(f"the number of the frame is below that of the first, {first_frame}")
    spaced = {name: value.replace("_", " ") for name, value in groups.items()}
    try:
        places = [videos / video.format(**groups), videos / video.format(**spaced)]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"dataset.video={video} cannot be filled in: {error!r}") from error
    for place in places:
        if place.is_file():
            return place, frame
    raise ValueError(f"the video {places[-1]} is missing")


def _read_frames(file: Path, frames: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, BGR picture) in the order of the video, which is read from its start: seeking is not exact.

    Raises ValueError, naming the video, where it ends or cannot be read.
    """
    capture = cv2.VideoCapture(str(file))
    try:
        position = -1
        for done, frame in enumerate(sorted(frames)):
            image = None
            while position < frame and capture.grab():
                position += 1
            if position == frame:
                _, image = capture.retrieve()
            if image is None:
                raise ValueError(
                    f"{file} cannot be read at frame {frame} (from 0), it gave {position + 1} frames: "
                    f"{len(frames) - done} pictures of it are not made."
                )
            yield frame, image
    finally:
        capture.release()
