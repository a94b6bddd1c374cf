"""Pictures on disk: finding them, naming their results, and reading their pixels and focal length."""

import glob
import logging
import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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
MAX_PIXELS = 300_000_000  # larger than any camera's; files that claim more may be meant to fill the memory
FILM_WIDTH = 36.0  # mm, of a picture on 35 mm film
_SHORTEST_LENS, _LONGEST_LENS = 8.0, 2000.0  # mm, equivalents on 35 mm film that lenses have
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # by EXIF unit of the focal plane's resolution
_FIRST_SIDE = 1024  # px; at this size damage is found when a picture is opened
_JPEG = ("JPEG", "MPO")  # formats whose decoder can reduce a picture
_MANY_PIXELS = 50e6  # Pillow takes 4 bytes for each
_STRIP = 512  # rows that are converted at once

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


class Level(NamedTuple):
    """A picture whose pixels are the means over cells of `factor` × `factor` pixels."""

    pixels: np.ndarray  # (h, w, 3) uint8 RGB
    factor: int  # a power of 2
    origin: np.ndarray  # (2,) px of the whole picture, where the first cell begins; below 0 if that cell is incomplete

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) in pixels of the whole picture -> in pixels of this one. The centre of pixel 0 is at 0."""
        return (boxes - self._first_centre) / self.factor

    def whole_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) in pixels of this picture -> in pixels of the whole one."""
        return boxes * self.factor + self._first_centre

    @property
    def _first_centre(self) -> np.ndarray:
        return np.tile(self.origin + (self.factor - 1) / 2, 2)


class Picture:
    """A picture of any size, whose pixels are decoded only as finely as they are needed.

    JPEG is decoded at 1/2, 1/4 or 1/8 of its size without its details: in less time, and in 1/4 … 1/64 of the memory.

    Args:
        size: (width, height) px, upright.
        decoded: pixels (h, w, 3) uint8 RGB by the factor that they are reduced by.
        decode: returns the pixels reduced by a factor, for powers of 2 up to `coarsest`; the rest is done here.
        flips: whether incomplete cells of `decode` are at the left, and at the top; otherwise right, and bottom.
        focal: focal length from the EXIF data, px.
    """

    def __init__(
        self,
        size: tuple[int, int],
        decoded: dict[int, np.ndarray],
        decode: Callable[[int], np.ndarray] | None = None,
        coarsest: int = 1,
        flips: tuple[bool, bool] = (False, False),
        focal: float | None = None,
    ):
        self.shape = (size[1], size[0], 3)
        self.focal = focal
        self._decoded, self._decode, self._coarsest, self._flips = decoded, decode, coarsest, flips

    @classmethod
    def of(cls, image: "Picture | np.ndarray") -> "Picture":
        """A picture (h, w, 3) uint8 RGB in memory as one; raises ValueError for another kind of array."""
        if isinstance(image, Picture):
            return image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"Expected a picture (H, W, 3) of uint8, got {image.shape} of {image.dtype}.")
        return cls(image.shape[1::-1], {1: image})

    def reduced(self, factor: int) -> Level:
        """The picture reduced by a power of 2. It is the same whatever was asked for before."""
        by_decoder = min(factor, self._coarsest)
        if by_decoder not in self._decoded:
            self._decoded[by_decoder] = self._decode(by_decoder)
        if factor not in self._decoded:
            self._decoded[factor] = _shrink(self._decoded[by_decoder], factor // by_decoder)
        height, width = self._decoded[by_decoder].shape[:2]
        missing = np.array([self.shape[1] - by_decoder * width, self.shape[0] - by_decoder * height])
        return Level(self._decoded[factor], factor, missing * self._flips)

    def at_least(self, side: float) -> Level:
        """The coarsest level whose longer side has at least `side` px; the whole picture if it is smaller itself."""
        return self.reduced(power_of_two(max(self.shape) / side))


def power_of_two(number: float) -> int:
    """The largest power of 2 that is not above a number; 1 for numbers below 1."""
    return 1 << max(0, int(number).bit_length() - 1)


def open_picture(path: str | Path) -> Picture:
    """A picture on disk, rotated as its EXIF orientation says.

    Grey, 16-bit, palette and CMYK pictures are converted; transparent pixels become white; of an animation the first
    frame is read.

    Raises InputError if the file is missing, not a picture, damaged, too small to show a person, or so large that it
    may be meant to fill the memory.
    """
    path = Path(path)
    with _opened(path) as file:
        stored = file.size
        coarsest = 8 if file.format in _JPEG else 1
        first = min(coarsest, power_of_two(max(stored) / _FIRST_SIDE))
        # Pillow itself turns TIFF: its size is that of the upright picture, and its tags are gone once it is decoded.
        tags = _tags(file)
        pixels, turn = _decode(file, first)
        size = stored[::-1] if turn.swap else stored
        focal = exif_focal(tags, size)

    def decode(factor: int) -> np.ndarray:
        with _opened(path) as file:
            return _decode(file, factor)[0]

    return Picture(size, {first: pixels}, decode, coarsest, turn.flips, focal)


def read_picture(path: str | Path) -> np.ndarray:
    """All pixels of a picture on disk as (h, w, 3) uint8 RGB, see `open_picture`."""
    return open_picture(path).reduced(1).pixels


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as Pillow opens it, with its size checked. What Pillow raises becomes an InputError, also later on."""
    if _is_heif(path):
        register_heif()
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, and of large pictures: we have a limit of our own
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from here on, and refuses twice as many
            with Image.open(path) as file:
                width, height = file.size
                if min(width, height) < MIN_SIDE:
                    raise InputError(f"{path} has {width}×{height} pixels; at least {MIN_SIDE}×{MIN_SIDE} are needed.")
                yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a picture.") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is {_why_unreadable(path)}.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} million pixels; scale it down first.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise InputError(f"{path} is damaged: {str(error).rstrip('.')}.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class _Turn(NamedTuple):
    """How a stored picture is turned upright: rows and columns are swapped, then columns or rows are reversed."""

    swap: bool = False
    flips: tuple[bool, bool] = (False, False)  # left and right, top and bottom


_TURNS = {  # by EXIF orientation; with all other values the picture is upright
    2: _Turn(False, (True, False)),
    3: _Turn(False, (True, True)),
    4: _Turn(False, (False, True)),
    5: _Turn(True, (False, False)),
    6: _Turn(True, (True, False)),
    7: _Turn(True, (True, True)),
    8: _Turn(True, (False, True)),
}


def _decode(file: Image.Image, factor: int) -> tuple[np.ndarray, _Turn]:
    """The upright pixels (h, w, 3) uint8 RGB of an opened file, reduced by its decoder, and how it was turned."""
    if factor > 1:
        file.draft(None, (file.width // factor, file.height // factor))
    all_of_many = factor == 1 and file.format in _JPEG and file.mode == "RGB" and math.prod(file.size) > _MANY_PIXELS
    if all_of_many:
        import cv2  # needs half the memory; slow to import

        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        stored = cv2.imdecode(np.fromfile(file.filename, np.uint8), flags)
        if stored is None:
            raise OSError("it cannot be decoded")
    else:
        file.load()
        width, height = file.size
        stored = np.empty((height, width, 3), np.uint8)
        # In strips, since Pillow's conversions copy. The range of floating point grey is that of the whole picture.
        step = height if file.mode == "F" else _STRIP
        for top in range(0, height, step):
            stored[top : top + step] = _to_rgb(file.crop((0, top, width, min(top + step, height))))
    turn = _TURNS.get(_tags(file).get(ExifTags.Base.Orientation), _Turn())
    upright = stored.swapaxes(0, 1) if turn.swap else stored
    upright = upright[:: -1 if turn.flips[1] else 1, :: -1 if turn.flips[0] else 1]
    return upright if all_of_many else np.ascontiguousarray(upright), turn


def _shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """(h, w, 3) uint8 -> the means over cells, (h / factor, w / factor, 3) rounded up."""
    step = factor * max(1, _STRIP // factor)
    strips = (np.ascontiguousarray(pixels[top : top + step]) for top in range(0, len(pixels), step))
    return np.concatenate([np.asarray(Image.fromarray(strip).reduce(factor)) for strip in strips])


def _tags(file: Image.Image) -> Mapping[int, Any]:
    """EXIF tags of a file; none where they are damaged."""
    try:
        exif = file.getexif()
        return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except Exception:  # Pillow's reader raises many kinds; a picture with damaged EXIF data is still a picture
        return {}


def exif_focal(tags: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """The focal length in pixels of a picture of `size` px from its EXIF tags; None if they do not say, or nonsense.

    The equivalent focal length on 35 mm film means that the picture's longer side is 36 mm wide, which stays true if
    the picture is resized, or its upper and lower edges are cut off (4:3 -> 16:9). Without it, the focal length in
    millimetres and the resolution of the sensor are taken. A picture with other proportions than those the camera noted
    was cut later on; its pixels are then taken to be the camera's.

    Source: Exif 2.32, tags FocalLength, FocalLengthIn35mmFilm, FocalPlaneXResolution, DigitalZoomRatio.
    """

    def number(tag: ExifTags.Base) -> float:
        """A tag's value; NaN, which is in no range, where it has none."""
        try:
            return float(tags[tag])
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
            return math.nan

    shorter, longer = sorted(size)
    # The sides (px) that the tags below are about: the camera's, or the picture's where the camera's make no sense.
    low, high = sorted(number(tag) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight))
    cut = low >= shorter and high >= longer and abs(low * longer / (high * shorter) - 1) > 0.02
    noted = high if high >= longer else longer

    unit = _MM_PER_UNIT.get(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2), math.nan)
    zoom = number(ExifTags.Base.DigitalZoomRatio)
    on_sensor = number(ExifTags.Base.FocalLength) * number(ExifTags.Base.FocalPlaneXResolution) / unit
    on_sensor *= zoom if zoom > 1 else 1
    for sides in (number(ExifTags.Base.FocalLengthIn35mmFilm) / FILM_WIDTH, on_sensor / noted):
        if _SHORTEST_LENS <= sides * FILM_WIDTH <= _LONGEST_LENS:
            return sides * (noted if cut else longer)
    return None


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
