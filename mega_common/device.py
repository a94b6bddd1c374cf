"""What precision a device is good at: bfloat16 where it has instructions for it, float32 elsewhere."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from functools import cache

import torch

PRECISIONS = ("fp32", "bf16")

log = logging.getLogger(__name__)


def choose_precision(asked: str, device: str | torch.device, say: Callable[[str], object] = log.warning) -> str:
    """The precision to compute in: "fp32" or "bf16".

    Args:
        asked: "auto" for what the device is good at, said in one line; "fp32" or "bf16" is obeyed, and bf16 on a
            device without it gives a warning.
        device: that is computed on.
        say: where the line or the warning goes.

    Raises ValueError for another precision.
    """
    if asked not in (*PRECISIONS, "auto"):
        raise ValueError(f"precision={asked} is not known; choose from {', '.join(PRECISIONS)}, auto.")
    has_it, why = _bfloat16(torch.device(device).type)
    if asked == "auto":
        asked = "bf16" if has_it else "fp32"
        say(f"precision=auto is {asked} here: {why}.")
    elif asked == "bf16" and not has_it:
        say(f"precision=bf16 was asked for, but {why}; fp32 is faster.")
    return asked


# torch.compile is to take the answer as a constant, not to look into how it is found.
@torch.compiler.assume_constant_result
def has_bfloat16(device_type: str) -> bool:
    """Whether "cpu" or "cuda" here has instructions for bfloat16, and PyTorch uses them; False for other types."""
    return _bfloat16(device_type)[0]


@cache
def _bfloat16(device_type: str) -> tuple[bool, str]:
    """(whether the device has bfloat16, the reason as a clause)."""
    if device_type == "cuda":
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
            return True, "the GPU computes in bfloat16"
        return False, "there is no GPU that computes in bfloat16"
    if device_type != "cpu":
        return False, f"bfloat16 has not been tried on {device_type}"
    # oneDNN computes products and convolutions. Its answer respects the limit that ONEDNN_MAX_CPU_ISA sets, but is yes
    # on every CPU with AVX512, and without the instructions bfloat16 was 2.7 times slower than float32 there. What the
    # CPU has says nothing of such a limit. So both are asked.
    has_it = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine() in ("x86_64", "AMD64"):
        has_it = has_it and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if has_it:
        return True, "the CPU has instructions for bfloat16"
    return False, "the CPU has no instructions for bfloat16, which was 57 times slower than fp32 on one with AVX2"
