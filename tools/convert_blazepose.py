"""Extract the encoder of BlazePose from MediaPipe's package (Apache-2.0).

    pip download --no-deps mediapipe==0.10.21     (later ones no longer have the file)
    pip install tflite
    python tools/convert_blazepose.py mediapipe-0.10.21-*.whl checkpoint/blazepose/encoder.safetensors

Both files hold half-precision numbers, so nothing is lost.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from mega.backbones.blazepose import WEIGHTS_FORMAT, BlazePose
from mega_common.weights_io import to_dtype, write_weights

_MEMBER = "mediapipe/modules/pose_landmark/pose_landmark_full.tflite"
_FEATURES = 271  # the tensor that the heads for maps and for landmarks both read
_NUMBERS = {0: np.float32, 1: np.float16}  # TensorType of the format


class _Graph:
    """The convolutions of the network in a TFLite file."""

    def __init__(self, content: bytes):
        import tflite  # only this script needs it

        self.model = tflite.Model.GetRootAsModel(content, 0)
        self.graph = self.model.Subgraphs(0)
        kinds = tflite.BuiltinOperator
        self.convolutions = {kinds.CONV_2D: (0, 3, 1, 2), kinds.DEPTHWISE_CONV_2D: (3, 0, 1, 2)}  # axes -> torch's
        self.made_by = {}  # tensor -> (kind of operator, its inputs), in order of execution
        for i in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(i)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            self.made_by[operator.Outputs(0)] = (kind, [int(tensor) for tensor in operator.InputsAsNumpy()])

    def values(self, tensor: int) -> np.ndarray:
        """A constant tensor; half-precision ones are the output of an operator that converts them."""
        if tensor in self.made_by:
            tensor = self.made_by[tensor][1][0]
        entry = self.graph.Tensors(tensor)
        stored = self.model.Buffers(entry.Buffer()).DataAsNumpy()
        return np.frombuffer(stored.tobytes(), _NUMBERS[entry.Type()]).reshape(entry.ShapeAsNumpy())

    def leading_to(self, tensor: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(weight, bias) of the convolutions that a tensor depends on, in order of execution."""
        needed, waiting = set(), [tensor]
        while waiting:
            current = waiting.pop()
            if current in self.made_by and current not in needed:
                needed.add(current)
                waiting.extend(self.made_by[current][1])
        found = []
        for output, (kind, inputs) in self.made_by.items():
            if output in needed and kind in self.convolutions:
                weight, bias = (self.values(i) for i in inputs[1:3])
                found.append((weight.transpose(self.convolutions[kind]), bias))
        return found


def read_encoder(wheel: str | Path) -> BlazePose:
    """The encoder in a wheel of MediaPipe. Raises ValueError if the wheel does not have it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(_MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel} is not a wheel with {_MEMBER}; mediapipe 0.10.21 has it.") from error
    found, encoder = _Graph(content).leading_to(_FEATURES), BlazePose()
    layers = [module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    for layer, (weight, bias) in zip(layers, found, strict=True):
        if weight.shape != layer.weight.shape:
            raise ValueError(
                f"{wheel} holds another network: a weight is {weight.shape}, expected {tuple(layer.weight.shape)}."
            )
        layer.weight.data.copy_(torch.tensor(weight))
        layer.bias.data.copy_(torch.tensor(bias))
    return encoder


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    wheel, path = map(Path, sys.argv[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, to_dtype(read_encoder(wheel).state_dict(), torch.float16), WEIGHTS_FORMAT, {"from": wheel.name})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
