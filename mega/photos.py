"""Pictures on disk: finding them, naming their results, and reading their pixels as 8-bit RGB."""

import glob
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mega.external_files import locate

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".bmp", ".webp", ".avif"),
    *(".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # read if pillow-heif is installed
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv"),
)
# Files that nobody expects to be read as pictures: notes, labels, meshes, and what operating systems write.
OTHER_SUFFIXES = (
    *(".txt", ".md", ".json", ".csv", ".tsv", ".yaml", ".yml", ".xml", ".html", ".log", ".py", ".ipynb", ".pdf"),
    *(".npz", ".npy", ".pkl", ".pt", ".glb", ".obj", ".mtl", ".ply", ".aae", ".xmp", ".ini", ".db"),
)
MIN_SIDE = 16  # px; a smaller picture cannot show a person

log = logging.getLogger(__name__)


class InputError(ValueError):
    """The user's input cannot be used. The message is a sentence that names the file or option."""


def input_folder(source: str) -> Path:
    """The folder that an input is in: itself, the folder of a file, or the part of a glob pattern without wildcards."""
    path = locate(source)
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def find_pictures(source: str) -> list[Path]:
    """The pictures in a folder, of a glob pattern, or a single file, sorted.

    A file or folder with such a name is not taken for a pattern. In folders and patterns, hidden files, our own results
    and files that do not look like pictures are left out; a warning names those that the user may have expected.

    Raises InputError if there is none.
    """
    path = locate(source)
    if path.is_file():
        return [path]
    folder = input_folder(source)
    if path.is_dir():
        candidates = list(path.iterdir())
        nothing = f"The folder {source} holds no pictures"
    elif glob.has_magic(source):
        pattern = str(path.relative_to(folder))
        spellings = {unicodedata.normalize(form, pattern) for form in ("NFC", "NFD")}  # see `locate`
        found = {name for each in spellings for name in glob.glob(each, root_dir=folder, recursive=True)}
        candidates = [folder / name for name in found]
        nothing = f"No picture matches {source}"
    else:
        raise InputError(f"The input {source} does not exist.")
    candidates = sorted(path for path in candidates if path.name[:1] != "." and not _is_our_drawing(path))
    reasons = {path: _why_skipped(path, folder) for path in candidates}
    pictures = [path for path, reason in reasons.items() if reason is None]
    searched = {parent for picture in pictures for parent in picture.parents}
    skipped = {}
    for path, reason in reasons.items():
        if reason and path not in searched:
            skipped.setdefault(reason, []).append(str(path.relative_to(folder)))
    skipped = "; ".join(f"{shorten(names)} ({reason})" for reason, names in skipped.items())
    if not pictures:
        raise InputError(f"{nothing} (looked for {', '.join(SUFFIXES)}){skipped and f'. Skipped: {skipped}'}.")
    if skipped:
        log.warning("Skipped in %s: %s.", folder, skipped)
    return pictures


def shorten(names: Sequence[str], at_most: int = 5) -> str:
    """Names for a message: the first few, and how many others there are."""
    others = len(names) - at_most
    return ", ".join(names) if others < 2 else f"{', '.join(names[:at_most])} and {others} others"


def _why_skipped(path: Path, folder: Path) -> str | None:
    """Why what was found in the input folder is not read: None if it is, empty if nobody expects it to be."""
    if path.is_dir():
        return f"folders; input='{folder / '**' / '*'}' takes their pictures too" * _has_pictures(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        return "a link to nothing" * (suffix not in OTHER_SUFFIXES)
    if suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and register_heif()):
        return None
    return "" if suffix in OTHER_SUFFIXES else _why_unreadable(path)


def _has_pictures(folder: Path) -> bool:
    """Whether there are pictures in a folder or its subfolders, among the first 10,000 files."""
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return any(
        path.suffix.lower() in SUFFIXES + HEIF_SUFFIXES and path.name[:1] != "." and not _is_our_drawing(path)
        for path in islice(files, 10_000)
    )


def _is_our_drawing(path: Path) -> bool:
    """Whether a picture is among the results of demo.py."""
    name = path.name.removesuffix("_overlay.png")
    return name != path.name and path.with_name(f"{name}.npz").is_file()


def _why_unreadable(path: Path) -> str:
    """What a file is that Pillow cannot read, in words that may follow `is`."""
    if path.suffix.lower() in HEIF_SUFFIXES or _is_heif(path):
        decoder = "pip install pillow-heif, or save the picture as JPEG"
        return "a damaged HEIC file" if register_heif() else f"HEIC, which needs a decoder: {decoder}"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "a video: save its frames as pictures first"
    return "not a picture, or has an unknown format"


def _is_heif(path: Path) -> bool:
    """Whether a file begins like HEIC, the format of iPhones, whatever its name is."""
    try:
        with path.open("rb") as file:
            return file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
    except OSError:
        return False


def register_heif() -> bool:
    """Let Pillow read HEIC if its decoder is installed; whether it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each picture; all differ, also on file systems that ignore case.

    Usually it is the file's stem; pictures with the same stem get more of their path: a.jpg, a.png -> a_jpg, a_png.
    """
    candidates = []  # for each picture, from short to long
    for p in paths:
        with_suffix = f"{p.stem}_{p.suffix[1:]}"
        candidates.append([p.stem, with_suffix, f"{p.absolute().parent.name}_{with_suffix}"])
    wanted = Counter(name.casefold() for names in candidates for name in set(names))
    chosen, taken = [], set()
    for names in candidates:
        # Where even the longest candidate belongs to several pictures, it gets a number.
        numbered = (f"{names[-1]}_{number}" for number in count(2))
        alone = (name for name in names if wanted[name.casefold()] == 1)
        name = next(name for name in chain(alone, numbered) if name.casefold() not in taken)
        chosen.append(name)
        taken.add(name.casefold())
    return chosen


def read_picture(path: str | Path) -> np.ndarray:
    """The picture as (h, w, 3) uint8 RGB, rotated as its EXIF orientation says.

    Grey, 16-bit, palette and CMYK pictures are converted; transparent pixels become white; of an animation the first
    frame is read.

    Raises InputError if the file is missing, not a picture, damaged, or too small to show a person.
    """
    path = Path(path)
    if _is_heif(path):
        register_heif()
    try:
        with Image.open(path) as file:
            file.load()
            pixels = _to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a picture.") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is {_why_unreadable(path)}.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has too many pixels; scale it down first.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise InputError(f"{path} is damaged: {str(error).rstrip('.')}.") from error
    height, width = pixels.shape[:2]
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path} has {width}×{height} pixels; at least {MIN_SIDE}×{MIN_SIDE} are needed.")
    return pixels


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bit grey; also 32 bit integers, of which 16 are used
        grey = (np.asarray(picture).astype(np.float32) / 257 + 0.5).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode == "F":  # floating point grey without a known range
        values = np.nan_to_num(np.asarray(picture))
        low, high = values.min(), values.max()
        grey = ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))
