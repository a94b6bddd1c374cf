"""Which part of the body a vertex and a token of a tokenizer belong to.

It follows from what the tokenizer stores: a vertex belongs to the part of the nearest bone of its template, a token to
the part of the vertex that it is centred on in the mesh hierarchy. Bones are drawn between the template's keypoints.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mega.bodies import KEYPOINTS
from mega.bodies.smplh import SMPL_JOINTS
from mesh_vq_vae import MeshVQVAE

PARTS = ("head", "torso", "left_arm", "right_arm", "left_leg", "right_leg")

# A bone's end: keypoints whose mean it is.
_End = tuple[str, ...]
_SHOULDERS, _HIPS = ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")


def keypoint_names(tokenizer: MeshVQVAE) -> tuple[str, ...]:
    """(J,) names of the tokenizer's keypoints: those of COCO and the feet, or SMPL's joints.

    Raises ValueError when the tokenizer has no template, or other keypoints.
    """
    regressor = tokenizer.keypoint_regressor
    if regressor is None or tokenizer.template is None:
        raise ValueError("The tokenizer stores no template and keypoints, which parts of the body are found by.")
    known = {len(KEYPOINTS): KEYPOINTS, 24: ("pelvis", *SMPL_JOINTS)}  # of SMPL's hands nothing is asked
    if len(regressor) not in known:
        raise ValueError(
            f"The tokenizer has {len(regressor)} keypoints; parts of the body are found by the "
            f"{len(KEYPOINTS)} of COCO and the feet, or by SMPL's 24."
        )
    return known[len(regressor)]


def limb_lengths(tokenizer: MeshVQVAE, vertices: Tensor) -> Tensor:
    """Lengths (B, 4, 2) m of upper arm, forearm, thigh and shin, left and right, in bodies (B, V, 3)."""
    names, keypoints = keypoint_names(tokenizer), tokenizer.keypoint_regressor @ vertices  # (B, J, 3)

    def ends(joints: tuple[str, ...]) -> Tensor:  # (B, 4, 2, 3)
        rows = [[names.index(f"{side}_{joint}") for side in ("left", "right")] for joint in joints]
        return keypoints[:, rows]

    return (ends(("shoulder", "elbow", "hip", "knee")) - ends(("elbow", "wrist", "knee", "ankle"))).norm(dim=-1)


def vertex_parts(tokenizer: MeshVQVAE) -> Tensor:
    """(V,) int64, the number in `PARTS` of each vertex. Hands belong to arms, feet to legs."""
    names, template = keypoint_names(tokenizer), tokenizer.template
    keypoints = tokenizer.keypoint_regressor @ template  # (J, 3)
    distances = []  # of the vertices to each part, (V,)
    for part in PARTS:
        ends = [[keypoints[[names.index(n) for n in end]].mean(dim=0) for end in bone] for bone in _bones(part, names)]
        distances.append(torch.stack([_distance_to_segment(template, *bone) for bone in ends]).min(dim=0).values)
    distances = torch.stack(distances)  # (P, V)
    # Limbs begin in a point of the torso: what is nearest to that point is torso.
    distances[PARTS.index("torso")] -= 1e-6
    return distances.argmin(dim=0)


def token_parts(tokenizer: MeshVQVAE) -> Tensor:
    """(N,) int64, the number in `PARTS` of each token. A token's code moves the surface around its centre most."""
    return vertex_parts(tokenizer)[token_centres(tokenizer)]


def token_centres(tokenizer: MeshVQVAE) -> Tensor:
    """(N,) int64, the vertex that each token is centred on: each point of a level is one of the level below."""
    return _follow(tokenizer, "pool", torch.arange(tokenizer.n_vertices))


def vertex_tokens(tokenizer: MeshVQVAE) -> Tensor:
    """(V,) int64, the token nearest to each vertex, by steps along edges in each level of the decoder."""
    return _follow(tokenizer, "unpool", torch.arange(tokenizer.n_tokens))


def _follow(tokenizer: MeshVQVAE, direction: str, labels: Tensor) -> Tensor:
    """Labels of the points before all "pool" or "unpool" layers -> after them: a point takes its nearest one's."""
    for name in tokenizer.config["connections"]:
        if name.startswith(direction):
            rows = torch.from_numpy(tokenizer.hierarchy[name]).long()
            ids, hops = rows[:, 1::2], rows[:, 2::2]
            nearest = hops.masked_fill(hops < 0, hops.max() + 1).argmin(dim=1, keepdim=True)
            labels = labels[ids.gather(1, nearest)[:, 0]]
    return labels.to(tokenizer.template.device)


def _bones(part: str, names: tuple[str, ...]) -> list[tuple[_End, _End]]:
    """The bones of a part, by names of keypoints."""
    if part == "head":
        # SMPL's head joint lies between the ears, so the border to the shoulders is on the neck in either case.
        return [(("head",), ("head",))] if "head" in names else [(("left_ear", "right_ear"), ("nose",))]
    if part == "torso":
        sides = [((shoulder,), (hip,)) for shoulder, hip in zip(_SHOULDERS, _HIPS, strict=True)]
        across = [((left,), (right,)) for left, right in (_SHOULDERS, _HIPS)]
        return [(_SHOULDERS, _HIPS), *sides, *across]
    side, limb = part.split("_")
    joints = ("shoulder", "elbow", "wrist") if limb == "arm" else ("hip", "knee", "ankle", "toe")
    toe = "foot" if "left_foot" in names else "big_toe"
    chain = [(f"{side}_{toe if joint == 'toe' else joint}",) for joint in joints]
    return list(pairwise(chain))


def _distance_to_segment(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distances (V,) of points (V, 3) to the segment from start (3,) to end (3,)."""
    along = end - start
    share = ((points - start) @ along / along.dot(along).clamp(min=1e-12)).clamp(0, 1)
    return (points - start - share[:, None] * along).norm(dim=-1)
