"""Extract the encoder of BlazePose from MediaPipe's package (Apache-2.0).

    pip download --no-deps mediapipe==0.10.21     (later ones no longer have the file)
    pip install tflite
    python tools/convert_blazepose.py mediapipe-0.10.21-*.whl checkpoint/blazepose/encoder.safetensors

Both files hold half-precision numbers, so nothing is lost.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from mega.backbones.mobile import BLAZEPOSE_FORMAT, BlazePose
from mega_common.weights_io import to_dtype, write_weights

_MEMBER = "mediapipe/modules/pose_landmark/pose_landmark_full.tflite"
_FEATURES = 271  # the tensor that the heads for maps and for landmarks both read
_NUMBERS = {0: np.float32, 1: np.float16}  # TensorType of the format


def read_convolutions(content: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight, bias) of the convolutions in a TFLite file that the features depend on, in order of execution."""
    import tflite  # only this script needs it

    model = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    made_by = {}  # tensor -> (kind of operator, its inputs), in order of execution
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        made_by[operator.Outputs(0)] = (kind, [int(tensor) for tensor in operator.InputsAsNumpy()])

    def values(tensor: int) -> np.ndarray:
        """A constant tensor; half-precision ones are the output of an operator that converts them."""
        if tensor in made_by:
            tensor = made_by[tensor][1][0]
        entry = graph.Tensors(tensor)
        stored = model.Buffers(entry.Buffer()).DataAsNumpy()
        return np.frombuffer(stored.tobytes(), _NUMBERS[entry.Type()]).reshape(entry.ShapeAsNumpy())

    needed = {_FEATURES}
    for output, (_, inputs) in reversed(made_by.items()):
        if output in needed:
            needed.update(inputs)
    kinds = tflite.BuiltinOperator
    axes = {kinds.CONV_2D: (0, 3, 1, 2), kinds.DEPTHWISE_CONV_2D: (3, 0, 1, 2)}  # -> PyTorch's order
    return [
        (values(inputs[1]).transpose(axes[kind]), values(inputs[2]))
        for output, (kind, inputs) in made_by.items()
        if output in needed and kind in axes
    ]


def read_encoder(wheel: str | Path) -> BlazePose:
    """The encoder in a wheel of MediaPipe. Raises ValueError if the wheel does not have it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(_MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel} is not a wheel with {_MEMBER}; mediapipe 0.10.21 has it.") from error
    found, encoder = read_convolutions(content), BlazePose()
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
    state = to_dtype(read_encoder(wheel).state_dict(), torch.float16)
    write_weights(path, state, BLAZEPOSE_FORMAT, {"from": wheel.name})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
