"""Make a trained CVQMAE faster at prediction: keep what never changes, compute products roughly, compile blocks."""

import os
import shutil
import sys

import torch
from torch import nn

from mega.model import CVQMAE, VQMAE
from mega_common.device import PRECISIONS

# Nine numbers a person and the logits: next to no work, and in bf16 millimetres and ties.
_EXACT = tuple(f"decoder.{name}" for name in ("head", "rotcam_head", "rot_predictor", "cam_predictor"))


def speed_up(model: CVQMAE, precision: str = "fp32", compile: bool = False) -> CVQMAE:
    """Change a model in place, for good; with the defaults it gives the very same numbers.

    Args:
        model: with its trained weights, on its device, in eval mode. The weights must not change afterwards.
        precision: "fp32" or "bf16", see `use_bfloat16`; `mega_common.device.choose_precision` gives one of them.
        compile: backbone and transformer blocks by torch.compile, which takes its minutes in the first calls.

    Raises:
        ValueError: for another precision.
        FileNotFoundError: if the model is on the CPU and there is no C++ compiler for torch.compile.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision} is not known; choose from {', '.join(PRECISIONS)}.")
    if precision == "bf16":
        use_bfloat16(model)
    model.encoder.freeze()
    if compile:
        compile_blocks(model, on_cpu=model.decoder.mask_token.device.type == "cpu")
    return model


def compile_blocks(model: VQMAE | CVQMAE, on_cpu: bool) -> None:
    """Send the transformer's blocks, and the backbone where there is one, through torch.compile when they are next run.

    It is done in place, so the names in the state dict stay. The blocks are alike: what is compiled for one serves for
    all.

    Raises FileNotFoundError if the model is going to run on the CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch.compile's own choice
    if on_cpu and shutil.which(compiler) is None:
        raise FileNotFoundError(f"compile=true needs a C++ compiler, and there is no {compiler} here.")
    backbone = [model.backbone] if isinstance(model, CVQMAE) else []
    for part in (*backbone, *model.encoder.transformer, *model.decoder.transformer):
        part.compile()


def use_bfloat16(model: CVQMAE) -> None:
    """Linear layers and convolutions of backbone and transformer in bfloat16, all the rest in float32.

    The weights are cast once, the input of each layer when it comes. What is between the layers stays as it is: the
    residual stream and the layer norms of the transformer are float32, since their sums are. Exact, too, are the heads
    that give logits, rotation and camera. (Autocast would cast the weights anew at every call, and the heads' too.)
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith(_EXACT):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_in_bfloat16)


def _in_bfloat16(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(torch.bfloat16) for x in inputs)
