"""Pictures from disk: which files, under which names their results go, and their pixels as 8 bit RGB."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MIN_SIDE = 16  # px; fewer cannot show a person


class InputError(ValueError):
    """Something the user gave cannot be used. The message is a sentence that names the file."""


def find_pictures(source: str) -> list[Path]:
    """The pictures that a folder, a file or a glob pattern stands for, sorted.

    Of folders and patterns only files with a picture's suffix count, and no hidden ones; a file named outright always
    counts.

    Raises:
        InputError: if there is none.
    """
    path = Path(source).expanduser()
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
    """A name for each picture's results, all different (also where upper and lower case are the same).

    Usually the file's stem; pictures that share it get more of their path: `a.jpg`, `a.png` -> `a_jpg`, `a_png`.
    """
    candidates = [
        (p.stem, f"{p.stem}_{p.suffix[1:]}", f"{p.absolute().parent.name}_{p.stem}_{p.suffix[1:]}") for p in paths
    ]
    names: list[str | None] = [None] * len(paths)
    taken: set[str] = set()
    for level in range(3):
        wanted = Counter(c[level].casefold() for c, name in zip(candidates, names, strict=True) if name is None)
        for i, candidate in enumerate(candidates):
            key = candidate[level].casefold()
            if names[i] is None and wanted[key] == 1 and key not in taken:
                names[i] = candidate[level]
                taken.add(key)
    for i, candidate in enumerate(candidates):  # the same name in folders of the same name
        number = 2
        while names[i] is None:
            name = f"{candidate[-1]}_{number}"
            if name.casefold() not in taken:
                names[i] = name
                taken.add(name.casefold())
            number += 1
    return names


def read_picture(path: str | Path) -> np.ndarray:
    """The picture as (h, w, 3) uint8 RGB, turned upright as its EXIF data says.

    Grey, 16 bit, palette and CMYK pictures are converted; what is transparent becomes white; of an animation the first
    frame is taken.

    Raises:
        InputError: if the file is missing, no picture, damaged, or too small to show a person.
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
        raise InputError(f"{path} is not a picture, or of a kind that is not known here.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has too many pixels; make it smaller first.") from None
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
