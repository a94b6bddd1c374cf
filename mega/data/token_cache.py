"""Tokens of many meshes, computed once and kept on disk: training then never touches the body or the tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mega.bodies import BodyModel
from mesh_vq_vae import MeshVQVAE
from mesh_vq_vae.whole_files import whole_file


def cached_tokens(
    path: str | Path,
    tokenizer: MeshVQVAE,
    body: BodyModel,
    batches: Iterable[dict],
    key: str,
    points: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Tokens of the bodies in `batches`, from the file at `path` where it was made from the same.

    Args:
        batches: {"pose": (B, J, 3), "shape": (B, S)} each, and "gender": B names, if the body takes them.
        key: names the bodies; with the tokenizer's weights and `points` it tells whether the file still holds.
        points: (S,) vertices to keep besides the tokens.

    Returns: {"tokens": (P, N) int16, "points": (P, S, 3) float16, metres}; points only if asked for.
    """
    path = Path(path)
    key = f"{key} | {_fingerprint(tokenizer, points)}"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            if file["key"].item() == key:
                return {name: file[name] for name in file.files if name != "key"}
    columns: dict[str, list[np.ndarray]] = {"tokens": []} | ({} if points is None else {"points": []})
    device = next(tokenizer.parameters()).device
    body = body.to(device)
    with torch.no_grad():
        for batch in tqdm(batches, desc=f"tokens for {path.name}", unit="batch"):
            gender = {"gender": batch["gender"]} if "gender" in batch else {}
            vertices = body(batch["pose"].to(device), batch["shape"].to(device), **gender)
            columns["tokens"].append(tokenizer.encode(vertices).to(torch.int16).cpu().numpy())
            if points is not None:
                columns["points"].append(vertices[:, points].half().cpu().numpy())
    result = {name: np.concatenate(parts) for name, parts in columns.items()}
    with whole_file(path) as file:
        np.savez(file, key=np.array(key), **result)
    return result


def _fingerprint(tokenizer: MeshVQVAE, points: Tensor | None) -> str:
    digest = hashlib.sha256()
    for value in tokenizer.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    if points is not None:
        digest.update(points.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
