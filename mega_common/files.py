"""Files: written completely or not at all; pickles and .npz read without running any code they contain."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer

from mega_common.file_kinds import unreadable


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing. It appears at `path` once everything is written; after an error nothing is left behind.

    It is written to a temporary file in the same folder, which is created if necessary, and then renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, data: bytes) -> None:
    """Write bytes as a `whole_file`."""
    with whole_file(path) as file:
        file.write(data)


def write_npz(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Write arrays (no pickle) as a `whole_file`; float64 is stored as float32."""
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in columns.items()}
    with whole_file(path) as file:
        np.savez(file, **single)


def write_json(path: str | Path, content: dict) -> None:
    """Write indented JSON as a `whole_file`; keys keep their order, file names of any encoding are kept."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A byte of a name that is not UTF-8 becomes JSON's \udc80, so that the file stays UTF-8.
    write_whole(path, text.encode(errors="backslashreplace"))


# Reading arrays (.npz)


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays with these names (those that exist), or all, of an annotation file (.npz).

    Arrays of objects, which published files contain, become arrays of numbers or text. Raises FileNotFoundError, or
    ValueError if the file cannot be read or a field holds anything but numbers and text; names file and field.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not any(name.endswith(".npy") for name in file.zip.namelist()):
                raise ValueError("it is a zip file without arrays")
            return {name: _read_array(file, name) for name in file.files if names is None or name in names}
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken archive may raise anything
        raise unreadable(path, "npz", error) from error


def read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file. Raises FileNotFoundError, or ValueError that says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken header may raise anything
        raise unreadable(path, "npy", error) from error


def as_text(column: np.ndarray) -> np.ndarray:
    """An array of text, also of bytes (UTF-8), as Python 2 wrote it. Raises ValueError for other bytes."""
    return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column.astype(str)


def as_names(column: np.ndarray) -> np.ndarray:
    """Paths as text with slashes, also if they were written as bytes, or on Windows. Raises ValueError as `as_text`."""
    names = as_text(column)
    return np.char.replace(names, "\\", "/") if names.size else names  # numpy fails on no names


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _read_array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    with file.zip.open(f"{name}.npy") as member:
        header = _HEADERS.get(np.lib.format.read_magic(member))
        if header is None or not header(member)[2].hasobject:
            return file[name]
        try:
            objects = _unpickle(member)
            array = np.array(objects.tolist())
            if array.dtype.hasobject:
                kinds = sorted({type(value).__name__ for value in objects.ravel().tolist()})
                raise ValueError(f"they are of the types {', '.join(kinds)}")
        except ValueError as error:
            raise ValueError(f"the field {name} holds objects other than numbers and text: {error}") from error
    return array


# Reading raw pickles of arrays


def load_pickle(path: Path) -> dict:
    """The dict in a pickle of numpy arrays, lists, dicts, text and numbers, written by Python 2 or 3.

    Nothing else that a file asks for is looked up, imported or called. Raises FileNotFoundError, or ValueError with
    file and reason.
    """
    with path.open("rb") as file:
        try:
            content = _unpickle(file)
        except ValueError as error:
            raise unreadable(path, "pickle", error) from error
    if not isinstance(content, dict):
        raise unreadable(path, "pickle", f"it holds a {type(content).__name__}, expected a dict of arrays")
    return content


def take(content: dict, path: Path, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The field `name` of a raw file as float64 of `shape`; None is any length. Raises ValueError with file, field."""
    return as_numbers(pick(content, path, name), path, name, shape)


def pick(content: dict, path: Path, name: str) -> object:
    """The field `name` of a raw file. Raises ValueError that names file and field."""
    if name not in content:
        raise ValueError(f"{path} lacks the field {name}.")
    return content[name]


def as_numbers(value: object, path: Path, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """`value` as float64 of `shape`; None is any length. Raises ValueError that names file and field."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the field {name} holds no array of numbers: {error}.") from error
    if array.ndim != len(shape) or any(w not in (None, n) for w, n in zip(shape, array.shape, strict=True)):
        expected = ", ".join("any" if w is None else str(w) for w in shape)
        raise ValueError(f"{path}: the field {name} has shape {array.shape}, expected ({expected}).")
    return array


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 stores bytes in the old protocols; always latin1."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


# Containers and numbers only: none of these can run code from the file.
_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, slice, str, tuple)
_ALLOWED = {("builtins", kind.__name__): kind for kind in _BUILTINS} | {
    ("builtins", "long"): int,
    ("builtins", "unicode"): str,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
_RENAMED = {
    "__builtin__": "builtins",  # Python 2
    "numpy.core.multiarray": "numpy._core.multiarray",  # numpy before 2.0
    "numpy.core.numeric": "numpy._core.numeric",
}


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[_RENAMED.get(module, module), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of numbers needs") from None


def _unpickle(file: BinaryIO) -> object:
    try:
        return _NumbersOnly(file, encoding="latin1").load()
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"{error or type(error).__name__}") from error
