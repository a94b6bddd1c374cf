"""Files that are written completely or not at all."""

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
    buffer = io.BytesIO()
    np.savez(buffer, **single)
    write_whole(path, buffer.getvalue())


def write_json(path: str | Path, content: dict) -> None:
    """Write indented JSON as a `whole_file`; keys keep their order."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
