"""What the tokenizer is trained and judged by."""

from torch import Tensor


def vertex_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean vertex distance of meshes (B, V, 3), each first centred on its vertex mean -> (B,), in their unit.

    The published training loss and its "v2v" (Fiche et al., ECCV 2024): a shift of a whole mesh costs nothing.
    """
    predicted = predicted - predicted.mean(1, keepdim=True)
    target = target - target.mean(1, keepdim=True)
    return (predicted - target).norm(dim=-1).mean(1)
