"""What makes trained models faster and nothing else: cached features of cls, bfloat16, torch.compile."""

import os
import shutil
import sys

import torch
from torch import nn

from mega.model import CVQMAE, VQMAE
from mega_common.device import PRECISIONS

# The heads stay in float32: they cost next to nothing, and bfloat16 would cost millimetres and make ties of logits.
_EXACT = tuple(f"decoder.{name}" for name in ("head", "rotcam_head", "rot_predictor", "cam_predictor"))


@torch.no_grad()
def optimize_for_inference(model: CVQMAE, precision: str = "fp32", compile: bool = False) -> CVQMAE:
    """Change a model in place and for good; with the defaults it gives exactly the same numbers.

    With "bf16" the linear layers and convolutions of backbone and transformer compute in bfloat16; residual stream,
    layer norms, and the heads of logits, rotation and camera stay in float32.

    Args:
        model: with its trained weights, on its device, in eval mode. The weights must not change afterwards.
        precision: "fp32" or "bf16"; `mega_common.device.choose_precision` returns one of them.
        compile: send backbone and transformer blocks through torch.compile; the first calls then take minutes.

    Raises:
        ValueError: for another precision.
        FileNotFoundError: if the model is on the CPU and there is no C++ compiler for torch.compile.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision} is not known; choose from {', '.join(PRECISIONS)}.")
    if precision == "bf16":
        # Weights are cast once, inputs at each layer. Autocast would cast weights at every call, also of the heads.
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith(_EXACT):
                module.to(torch.bfloat16)
                module.register_forward_pre_hook(lambda _, inputs: tuple(x.to(torch.bfloat16) for x in inputs))
    cls = model.encoder.encode_cls()
    model.encoder.encode_cls = lambda: cls  # a deterministic prediction does not need to run the encoder
    if compile:
        compile_blocks(model, on_cpu=cls.device.type == "cpu")
    return model


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
