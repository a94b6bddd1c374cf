"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its place when all is written, and leaves nothing behind when that fails.

    It is written beside its place, under a name of this process's own, and renamed. The folder is made if need be.
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
    """Bytes as a whole file."""
    with whole_file(path) as file:
        file.write(data)


def write_npz(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Arrays without pickle as a whole file; float64 becomes float32."""
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in columns.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **single)
    write_whole(path, buffer.getvalue())


def write_json(path: str | Path, content: dict) -> None:
    """Readable, in the order given, as a whole file."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
