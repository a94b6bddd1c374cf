"""What makes the models faster and nothing else: computing only what is read, bfloat16, torch.compile.

The methods themselves are in `mega.model`, which reads without this file.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mega_common.device import PRECISIONS

if TYPE_CHECKING:
    from mega.model import CVQMAE, VQMAE, MaskedEncoder

# The heads stay in float32: they cost next to nothing, and bfloat16 would cost millimetres and make ties of logits.
_EXACT = tuple(f"decoder.{name}" for name in ("head", "rotcam_head", "rot_predictor", "cam_predictor"))


def optimize_for_inference(model: CVQMAE, precision: str = "fp32", compile: bool = False) -> CVQMAE:
    """Change a model in place and for good; with the defaults it gives exactly the same numbers.

    Args:
        model: with its trained weights, on its device, in eval mode. The weights must not change afterwards.
        precision: "fp32" or "bf16" (`use_bfloat16`); `mega_common.device.choose_precision` returns one of them.
        compile: send backbone and transformer blocks through torch.compile; the first calls then take minutes.

    Raises:
        ValueError: for another precision.
        FileNotFoundError: if the model is on the CPU and there is no C++ compiler for torch.compile.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision} is not known; choose from {', '.join(PRECISIONS)}.")
    if precision == "bf16":
        use_bfloat16(model)
    cache_cls(model.encoder)
    if compile:
        compile_blocks(model, on_cpu=model.decoder.mask_token.device.type == "cpu")
    return model


def block_at(block: Block, x: Tensor, wanted: Tensor) -> Tensor:
    """The output of a transformer block for some tokens (B, M, D) of its input x (B, L, D): (B, M, D).

    Keys and values come from all of x; queries, projection and MLP are computed for the wanted tokens only.
    """
    attention, dim = block.attn, x.shape[-1]
    query, key_value = attention.qkv.weight.split([dim, 2 * dim])
    q = F.linear(block.norm1(wanted).to(query.dtype), query)  # (B, M, D)
    k, v = F.linear(block.norm1(x).to(query.dtype), key_value).chunk(2, dim=-1)  # (B, L, D) each
    q, k, v = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, M, D)
    wanted = wanted + attention.proj(attended)
    return wanted + block.mlp(block.norm2(wanted))


@torch.no_grad()
def cache_cls(encoder: MaskedEncoder) -> None:
    """Compute the features of cls alone once: a deterministic prediction then does not run the encoder at all."""
    cls = encoder.encode_cls()
    encoder.encode_cls = lambda: cls


def compile_blocks(model: VQMAE | CVQMAE, on_cpu: bool) -> None:
    """Let torch.compile compile the transformer's blocks, and the backbone if there is one, when they first run.

    This is done in place, so the names in the state dict stay. The blocks have equal shapes and share one compilation.

    Raises FileNotFoundError if the model is going to run on the CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch.compile's own choice
    if on_cpu and shutil.which(compiler) is None:
        raise FileNotFoundError(f"compile=true needs a C++ compiler, and there is no {compiler} here.")
    backbone = [model.backbone] if hasattr(model, "backbone") else []
    for part in (*backbone, *model.encoder.transformer, *model.decoder.transformer):
        part.compile()


def use_bfloat16(model: CVQMAE) -> None:
    """Linear layers and convolutions of backbone and transformer in bfloat16, everything else in float32.

    Weights are cast once, inputs at each layer. Residual stream and layer norms stay in float32, and so do the heads
    of logits, rotation and camera. (Autocast would cast the weights at every call, and those of the heads, too.)
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith(_EXACT):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_in_bfloat16)


def _in_bfloat16(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.bfloat16) for x in inputs)
