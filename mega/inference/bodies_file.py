"""Bodies from a file, as the tokens of a tokenizer."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from mega.inference.images import InputError
from mesh_vq_vae import MeshVQVAE

_ENCODED_AT_ONCE = 16


def read_body_tokens(path: str | Path, tokenizer: MeshVQVAE, limit: int | None = None) -> Tensor:
    """Tokens (P, N) int64 of the bodies in an .npz, on the CPU.

    Args:
        path: with `tokens` (P, N) of this tokenizer, as demo.py, generate.py and the pre-training write them; or, if it
            has none, with `vertices` (P, V, 3) m of canonical meshes, which are encoded: y up, facing +z (root rotation
            zero); they are centred here.
        tokenizer: of these tokens.
        limit: how many bodies at most, the first ones.

    Raises InputError that names the file and what is wrong with it.
    """
    rows = slice(limit)
    arrays = _read(Path(path).expanduser())
    if "tokens" in arrays:
        tokens = arrays["tokens"][rows]
        if tokens.ndim != 2 or tokens.shape[1] != tokenizer.n_tokens or not np.issubdtype(tokens.dtype, np.integer):
            raise InputError(
                f"The tokens in {path} are {tokens.dtype} {tokens.shape}, but this tokenizer's are whole numbers "
                f"(people, {tokenizer.n_tokens}). Were they made with another tokenizer?"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < tokenizer.codebook_size:
            raise InputError(
                f"The tokens in {path} are {tokens.min()}..{tokens.max()}, but this tokenizer has "
                f"{tokenizer.codebook_size} codes. Were they made with another tokenizer?"
            )
        return torch.from_numpy(tokens.astype(np.int64))
    vertices = arrays["vertices"][rows]
    if vertices.shape[1:] != (tokenizer.n_vertices, 3) or not np.isfinite(vertices).all():
        raise InputError(
            f"The vertices in {path} have shape {vertices.shape}, but this tokenizer's bodies are finite numbers "
            f"(people, {tokenizer.n_vertices}, 3)."
        )
    vertices = torch.from_numpy(vertices - vertices.mean(axis=1, keepdims=True)).float()
    device = tokenizer.template.device
    encoded = [tokenizer.encode(part.to(device)).cpu() for part in vertices.split(_ENCODED_AT_ONCE)]
    return torch.cat(encoded)


def _read(path: Path) -> dict[str, np.ndarray]:
    """`tokens` or else `vertices` of a file."""
    if not path.is_file():
        raise InputError(f"The file {path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            name = next((n for n in ("tokens", "vertices") if n in file.files), None)
            if name is not None:
                return {name: file[name]}
            held = ", ".join(file.files)
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be read as an .npz file: {error}.") from error
    raise InputError(f"{path} holds neither tokens nor vertices, but: {held}.")
