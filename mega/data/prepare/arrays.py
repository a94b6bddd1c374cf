"""The arrays of an annotation file (.npz), without ever running what a pickle in it may ask for."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from mega.data.prepare.pickles import unpickle

_BROKEN = (zipfile.BadZipFile, zlib.error, AttributeError, KeyError, TypeError, ValueError, OSError, EOFError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of these names that are there, or all. Arrays of objects, which published files may hold, are made
    arrays of numbers or of text.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it cannot be read, or a field holds anything but numbers and text; names file and field.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _read(file, name) for name in file.files if names is None or name in names}
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read as annotations (.npz): {error}") from error


def _read(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    with file.zip.open(f"{name}.npy") as member:
        header = _HEADERS.get(np.lib.format.read_magic(member))
        if header is None or not header(member)[2].hasobject:
            return file[name]
        try:
            return _plain(unpickle(member))
        except ValueError as error:
            raise ValueError(f"the field {name} holds objects other than numbers and text: {error}") from error


def _plain(objects: object) -> np.ndarray:
    """An array of objects as one of numbers or of text."""
    if not isinstance(objects, np.ndarray) or objects.dtype != object:
        raise ValueError(f"they are not in an array, but in a {type(objects).__name__}")
    array = np.array(objects.tolist())
    if array.dtype.hasobject:
        kinds = sorted({type(value).__name__ for value in objects.ravel().tolist()})
        raise ValueError(f"they are of the types {', '.join(kinds)}")
    return array
