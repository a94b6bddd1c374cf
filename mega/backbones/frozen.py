"""The first stages of a small backbone, of which some may be frozen in training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mega_common.device import has_bfloat16


def run_stages(stem: Callable[[Tensor], Tensor], stages: nn.Sequential, n_frozen: int, images: Tensor) -> Tensor:
    """Images through the stem and all stages; with `n_frozen` > 0 the stem and so many stages get no gradient.

    While the rest is trained, the frozen part runs in bfloat16 where the device has it: three digits are enough there.
    (The trained part does not: the gradient of a depthwise convolution in bfloat16 is slow on a CPU.)
    """
    # Depthwise convolutions on a CPU are about twice as fast in this memory format.
    x = images.contiguous(memory_format=torch.channels_last)
    if not n_frozen:
        return stages(stem(x))
    rough = stages.training and has_bfloat16(x.device.type)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=rough):
        x = stages[:n_frozen](stem(x)).to(images.dtype)
    return stages[n_frozen:](x)
