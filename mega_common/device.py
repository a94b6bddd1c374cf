"""The device to compute on, and the precision it is good at: bfloat16 if it has instructions for it, else float32."""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

PRECISIONS = ("fp32", "bf16")

log = logging.getLogger(__name__)


def read_device(name: str) -> torch.device:
    """The device that an option names: auto, cpu, cuda, cuda:N or mps.

    auto is CUDA if there is a GPU; on a Mac its GPU (mps) if it computes as the CPU does, else a line says so; else the
    CPU. auto and cuda are the GPU of this process where torchrun has started one process per GPU (LOCAL_RANK).

    Raises ValueError if the name is not known or the device cannot be used here.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", str(name)):
        raise ValueError(f"device={name} is not known; choose from auto, cpu, cuda, cuda:N, mps.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _mps_works() else "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ValueError(f"device={name} cannot be used here: {str(error).splitlines()[0].split('. ')[0]}") from None
    return device


@cache
def _mps_works() -> bool:
    """Whether the GPU of a Mac runs what our networks consist of, with the CPU's results."""
    if not torch.backends.mps.is_available():
        return False
    try:
        on_cpu, on_mps = _sample_of_operations("cpu"), _sample_of_operations("mps").cpu()
        fault = "" if torch.allclose(on_cpu, on_mps, atol=1e-3) else "other results than on the CPU"
    except (RuntimeError, NotImplementedError, TypeError) as error:
        fault = str(error).splitlines()[0]
    if fault:
        log.warning("device=auto is cpu here, since the Mac's GPU (mps) cannot be used: %s.", fault.rstrip("."))
    return not fault


def _sample_of_operations(device: str) -> torch.Tensor:
    """A convolution, attention and a choice of codes, on numbers that are the same on every device."""
    x, kernel = (torch.linspace(-2, 2, n).sin().to(device) for n in (8 * 16 * 16, 8 * 8 * 9))
    x = functional.conv2d(x.view(1, 8, 16, 16), kernel.view(8, 8, 3, 3), stride=2, padding=1)
    x = functional.layer_norm(x.flatten(2).mT, (8,))  # (1, 64, 8)
    x = functional.scaled_dot_product_attention(x, x, x)
    noise = torch.empty(64, device=device).exponential_(generator=torch.Generator(device).manual_seed(0))
    order = (0 * noise).sum() + x.sum(-1)
    return torch.cat([x.flatten(), x.gather(1, x.argmax(1, keepdim=True)).flatten(), order.sort(dim=1)[0].flatten()])


def choose_precision(asked: str, device: str | torch.device, say: Callable[[str], object] = log.warning) -> str:
    """The precision to compute in: "fp32" or "bf16".

    Args:
        asked: "auto" for what the device is good at, which `say` reports; "fp32"; or "bf16", with a warning if the
            device lacks it.
        device: to compute on.
        say: prints a line.

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


@torch.compiler.assume_constant_result  # torch.compile must not trace into it
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
    # Both have to be asked. oneDNN, which computes products and convolutions, respects the limit ONEDNN_MAX_CPU_ISA,
    # but answers yes on every CPU with AVX512, where bfloat16 without the instructions was 2.7 times slower than fp32.
    has_it = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine() in ("x86_64", "AMD64"):
        has_it = has_it and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if has_it:
        return True, "the CPU has instructions for bfloat16"
    return False, "the CPU has no instructions for bfloat16, which was 57 times slower than fp32 on one with AVX2"
