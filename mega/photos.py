"""Pictures on disk: finding them, naming their results, and reading their pixels as 8-bit RGB."""

import glob
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mega.external_files import locate

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MIN_SIDE = 16  # px; a smaller picture cannot show a person


class InputError(ValueError):
    """The user's input cannot be used. The message is a sentence that names the file or option."""


def find_pictures(source: str) -> list[Path]:
    """The pictures in a folder, of a glob pattern, or a single file, sorted.

    In folders and patterns, hidden files and files without the suffix of a picture are left out.

    Raises InputError if there is none.
    """
    path = locate(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = list(path.iterdir())
        nothing = f"The folder {source} holds no pictures"
    else:
        candidates = [Path(name) for name in glob.glob(str(path), recursive=True)]
        nothing = f"No picture matches {source}"
        if not glob.has_magic(source):
            raise InputError(f"The input {source} does not exist.")
    pictures = [p for p in candidates if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not pictures:
        raise InputError(f"{nothing} (looked for {', '.join(SUFFIXES)}).")
    return sorted(pictures)


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
        raise InputError(f"{path} is not a picture, or has an unknown format.") from None
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
