"""SMPL-H from the user's own files, skinned by smplx: the body of the published setups."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from smplx.lbs import lbs
from torch import Tensor

from mega.bodies.body import BodyModel
from mega.external_files import require
from mega_common.files import read_array, read_arrays

log = logging.getLogger(__name__)

N_VERTICES, N_JOINTS, N_BETAS = 6890, 52, 10
_SMPL_IN_SMPLH = (*range(22), 22, 37)
#: The joints of a pose, root left out; the 30 of the hands stay flat.
SMPL_JOINTS = (
    *("left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle", "spine3"),
    *("left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist"),
)
GENDERS = ("neutral", "male", "female")
_FOLDERS = {"neutral": "neutral", "male": "m", "female": "f"}
_SHAPES = {
    "v_template": (N_VERTICES, 3),
    "shapedirs": (N_VERTICES, 3, None),
    "posedirs": (N_VERTICES, 3, 9 * (N_JOINTS - 1)),
    "J_regressor": (N_JOINTS, N_VERTICES),
    "weights": (N_VERTICES, N_JOINTS),
    "kintree_table": (2, N_JOINTS),
    "f": (13776, 3),
}
# By the shape of a row of skinning weights.
_OTHER_BODIES = {
    (24,): " It looks like SMPL, which has 24 joints: SMPL-H is needed.",
    (55,): " It looks like SMPL-X, which has 55 joints: SMPL-H is needed.",
}


def gender_name(gender: str) -> str:
    """neutral, male or female, from any of the spellings that data sets use (m, f, male, FEMALE, …).

    Raises ValueError for anything else, since a wrong body would go unnoticed.
    """
    for name in GENDERS:
        if str(gender).strip().lower() in (name, name[0]):
            return name
    raise ValueError(f"The gender {str(gender)!r} is none of f, female, m, male, n, neutral.")


class SMPLHBody(BodyModel):
    """SMPL-H: 21 joints, flat hands; the shape is 10 betas, the keypoints are SMPL's 24 joints.

    Each gender is read once per process, when it is first needed.

    Args:
        folder: with `smplh/{neutral,m,f}/model.npz`, `J_regressor_24.npy` and `J_regressor_h36m.npy`.

    Attributes:
        h36m_regressor: (17, V) joints of H36M.

    Source: Romero et al., Embodied Hands, SIGGRAPH Asia 2017.
    """

    name = "smplh"
    joint_names = SMPL_JOINTS
    n_shape = N_BETAS

    def __init__(self, folder: str | Path = "body_models"):
        super().__init__()
        self.folder = Path(folder)
        neutral = self.gender("neutral")
        self.register_buffer("faces", neutral.faces, persistent=False)
        template = neutral.v_template - neutral.v_template.mean(0)
        self.register_buffer("template", template, persistent=False)
        keypoint_regressor = read_regressor(self.folder / "J_regressor_24.npy", 24)
        h36m_regressor = read_regressor(self.folder / "J_regressor_h36m.npy", 17)
        self.register_buffer("keypoint_regressor", keypoint_regressor, persistent=False)
        self.register_buffer("h36m_regressor", h36m_regressor, persistent=False)

    def forward(self, pose: Tensor, shape: Tensor, gender: str | Sequence[str] | Tensor = "neutral") -> Tensor:
        """See `BodyModel`; `gender` is one name for all, or B names, or (B,) indices into `GENDERS`."""
        self.check_shapes(pose, shape)
        if isinstance(gender, Tensor):
            gender = [GENDERS[i] for i in gender.tolist()]
        genders = [gender_name(g) for g in ([gender] * len(pose) if isinstance(gender, str) else gender)]
        full = torch.cat([pose.new_zeros(len(pose), 1, 3), pose, pose.new_zeros(len(pose), 30, 3)], dim=1)
        vertices = pose.new_empty(len(pose), N_VERTICES, 3)
        for name in dict.fromkeys(genders):
            rows = torch.tensor([i for i, g in enumerate(genders) if g == name], device=pose.device)
            vertices[rows] = self.gender(name, pose.device).vertices(full[rows], shape[rows])
        return vertices - vertices.mean(dim=1, keepdim=True)

    def sample_shapes(self, n: int, generator: torch.Generator) -> Tensor:
        """n people: (n, 10) betas, standard normal as SMPL's shape space is."""
        return torch.randn(n, N_BETAS, generator=generator)

    def gender(self, gender: str, device: torch.device | str = "cpu") -> GenderedBody:
        """One gender's arrays, read at first use."""
        return _read_gender(self.folder / "smplh" / _FOLDERS[gender_name(gender)] / "model.npz", torch.device(device))


class GenderedBody:
    """One gender's arrays on a device, and skinning with them."""

    def __init__(self, path: Path, device: torch.device):
        arrays = read_smplh(path)

        def tensor(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(arrays[name])).to(device, dtype)

        self.faces = tensor("f", torch.int64)
        self.v_template, self.regressor, self.weights = tensor("v_template"), tensor("J_regressor"), tensor("weights")
        self.shapedirs = tensor("shapedirs")[..., :N_BETAS].contiguous()
        self.posedirs = tensor("posedirs").flatten(0, 1).T.contiguous()  # (9 * 51, V * 3)
        self.parents = tensor("kintree_table", torch.int64)[0].clone()
        self.parents[0] = -1

    def vertices(self, pose: Tensor, betas: Tensor) -> Tensor:
        """Pose (B, 52, 3), root first, and betas (B, 10) -> (B, V, 3), not centred."""
        arrays = (self.v_template, self.shapedirs, self.posedirs, self.regressor, self.parents, self.weights)
        return lbs(betas, pose.flatten(1), *arrays)[0]


_read_gender = cache(GenderedBody)


def read_smplh(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an SMPL-H `model.npz`.

    Raises FileNotFoundError with the file's source, or ValueError if something is wrong with the file.
    """
    require(path)
    arrays = read_arrays(path, _SHAPES)
    if missing := sorted(_SHAPES.keys() - arrays.keys()):
        raise ValueError(f"{path} is not an SMPL-H body: it lacks {', '.join(missing)}.")
    hint = _OTHER_BODIES.get(arrays["weights"].shape[-1:], "")
    for name, wanted in _SHAPES.items():
        shape = arrays[name].shape
        if len(shape) != len(wanted) or any(w not in (None, n) for w, n in zip(wanted, shape, strict=True)):
            expected = ", ".join("any" if w is None else str(w) for w in wanted)
            raise ValueError(f"{path} is not an SMPL-H body: {name} has shape {shape}, expected ({expected}).{hint}")
    if arrays["shapedirs"].shape[2] < N_BETAS:
        raise ValueError(f"{path} has {arrays['shapedirs'].shape[2]} betas, {N_BETAS} are needed.")
    return arrays


def read_regressor(path: Path, rows: int) -> Tensor:
    """A joint regressor (rows, 6890) float32 from a `.npy` file.

    A regressor from an SMPL-H file, as the published instructions say, has 52 joints. They are reduced to SMPL's 24:
    the first 22 are the same, and the first joints of the index fingers replace SMPL's two hands.

    Raises FileNotFoundError, or ValueError if something is wrong with the file.
    """
    require(path)
    regressor = read_array(path)
    if regressor.shape[:1] == (N_VERTICES,):
        raise ValueError(f"{path} is transposed: its shape is {regressor.shape}, expected ({rows}, {N_VERTICES}).")
    if rows == 24 and regressor.shape == (N_JOINTS, N_VERTICES):
        log.info(
            "%s has SMPL-H's 52 joints, reduced to SMPL's 24: the first joints of the index fingers are its hands.",
            path,
        )
        regressor = regressor[list(_SMPL_IN_SMPLH)]
    if regressor.shape != (rows, N_VERTICES):
        raise ValueError(f"{path} has shape {regressor.shape}, expected ({rows}, {N_VERTICES}).")
    return torch.from_numpy(np.asarray(regressor, np.float32))
