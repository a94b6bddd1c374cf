"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the place and rename: nobody ever finds half a file. The folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Arrays without pickle; float64 becomes float32."""
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in columns.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **single)
    write_whole(path, buffer.getvalue())


def write_json(path: Path, content: dict) -> None:
    """Readable, in the order given."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
