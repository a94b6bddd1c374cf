"""Where files are: what the project or the installed package holds, and what users of the published setups fetch.

The published files cannot be shipped here. The table FILES says where each comes from; every error about a missing one,
and `tools/check_setup.py`, read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parents[1]  # the checkout; of an installed package, the folder it is in


def _bundled(in_package: str, in_project: str) -> Path:
    """A folder that the wheel holds inside the package `mega`, and a checkout beside it."""
    packaged = PROJECT / "mega" / in_package
    return packaged if packaged.is_dir() else PROJECT / in_project


CONFIGS = _bundled("configs", "configs")
SHIPPED_WEIGHTS = _bundled("weights/anny_lite", "checkpoint/anny_lite")


def locate(path: str | Path) -> Path:
    """A path as it is given, from the current folder; if nothing is there, the same path from the project's folder."""
    path = Path(path).expanduser()
    inside = PROJECT / path
    return inside if not path.exists() and inside.exists() else path


_MANO = (
    'https://mano.is.tue.mpg.de (free account), page Downloads, "Extended SMPL+H model (used in AMASS)", smplh.tar.xz'
)
_RELEASED = "https://zenodo.org/records/14974141"
_BEDLAM_IMAGES = (
    "https://bedlam.is.tue.mpg.de (free account) and, for the pictures, the steps of "
    'https://github.com/pixelite1201/BEDLAM/blob/master/docs/training.md, "Training CLIFF model with real images"'
)


@dataclass(frozen=True)
class UserFile:
    """A file or folder of the published setups.

    Attributes:
        path: its place, from the project's root, or in torch.hub's folder of weights.
        what: description.
        source: site, page and file name.
        how: what to do after the download.
        kind: how it is checked: smplh, regressor24, regressor17, tokenizer, vqmae, cvqmae, backbone, annotations,
            test_annotations, motions.
        needed_for: steps that need it: demo, pretraining, training, evaluation. What the demo needs, evaluation and
            training on pictures need as well.
        experiments: those that need it; empty for all.
        in_hub: whether its place is in torch.hub's folder of weights, which all projects share.
    """

    path: str
    what: str
    source: str
    how: str
    kind: str
    needed_for: tuple[str, ...]
    experiments: tuple[str, ...] = ()
    in_hub: bool = False

    def place(self, root: str | Path = ".") -> Path:
        """Its path, for a project in the folder `root`."""
        return (Path(torch.hub.get_dir()) / "checkpoints" if self.in_hub else Path(root)) / self.path


def _body(folder: str, gender: str, needed_for: tuple[str, ...]) -> UserFile:
    how = f"extract it in body_models/ and rename the folder {gender} to {folder}" if folder != gender else "extract it"
    return UserFile(f"body_models/smplh/{folder}/model.npz", f"SMPL-H, {gender}", _MANO, how, "smplh", needed_for)


def _image_model(name: str) -> UserFile:
    path = f"checkpoint/CVQMAE/mega_{name}"
    return UserFile(path, "released image model", _RELEASED, "put it there", "cvqmae", ("demo",), (f"mega_{name}",))


def _annotations(path: str, what: str) -> UserFile:
    return UserFile(path, what, _BEDLAM_IMAGES, "keep the pictures beside it", "annotations", ("training",))


IMAGENET = UserFile(
    "resnet50-11ad3fa6.pth",  # of torchvision's ResNet50_Weights.DEFAULT
    "ResNet-50 trained on ImageNet",
    "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    "train_mega.py fetches it; without a network put it in hub/checkpoints of the folder TORCH_HOME (~/.cache/torch)",
    "backbone",
    ("training",),
    ("mega_resnet",),
    in_hub=True,
)

FILES = (
    _body("neutral", "neutral", ("demo",)),
    _body("m", "male", ("training", "evaluation")),
    _body("f", "female", ("training", "evaluation")),
    UserFile(
        "body_models/J_regressor_24.npy",
        "regressor of SMPL's 24 joints",
        "the SMPL-H file above",
        "in body_models/: unzip smplh/m/model.npz J_regressor.npy, then rename it",
        "regressor24",
        ("demo",),
    ),
    UserFile(
        "body_models/J_regressor_h36m.npy",
        "regressor of H36M's 17 joints",
        "https://github.com/open-mmlab/mmhuman3d/blob/main/docs/getting_started.md#body-model-preparation",
        "rename it",
        "regressor17",
        ("demo",),
    ),
    UserFile(
        "checkpoint/MESH_VQVAE/mesh_vqvae_54", "released tokenizer", _RELEASED, "put it there", "tokenizer", ("demo",)
    ),
    UserFile("checkpoint/VQMAE/mega_pretrained", "released prior", _RELEASED, "put it there", "vqmae", ("training",)),
    _image_model("hrnet"),
    _image_model("resnet"),
    _image_model("vit"),
    UserFile(
        "body_models/pose_hrnet_w48.pth",
        "HRNet-W48 trained on poses",
        "https://github.com/leoxiaobin/deep-high-resolution-net.pytorch",
        "rename it",
        "backbone",
        ("training",),
        ("mega_hrnet",),
    ),
    UserFile(
        "body_models/vitpose_backbone.pth",
        "ViT-H trained on poses",
        "the section Training of https://github.com/shubham-goel/4D-Humans",
        "put it there",
        "backbone",
        ("training",),
        ("mega_vit",),
    ),
    IMAGENET,
    UserFile(
        "datasets/bedlam_animations",
        "BEDLAM's animations",
        'https://bedlam.is.tue.mpg.de (free account), page Downloads, "SMPL neutral" of the animation files',
        "extract it in datasets/ and rename the folder",
        "motions",
        ("pretraining",),
    ),
    _annotations("datasets/coco/coco.npz", "COCO with BEDLAM's labels"),
    _annotations("datasets/mpii/mpii.npz", "MPII with BEDLAM's labels"),
    _annotations("datasets/h36m_train/h36m_train.npz", "H36M with BEDLAM's labels"),
    _annotations("datasets/mpi-inf-3dhp/mpi_inf_3dhp_train.npz", "MPI-INF-3DHP with BEDLAM's labels"),
    UserFile(
        "datasets/3dpw/3dpw_test.npz",
        "3DPW's test people",
        "https://virtualhumans.mpi-inf.mpg.de/3DPW (free account), imageFiles and sequenceFiles",
        "extract both in datasets/3dpw, then: python tools/prepare_data.py 3dpw; or put the published file at "
        "datasets/3DPW/3DPW_test.npz",
        "test_annotations",
        ("evaluation",),
    ),
    UserFile(
        "datasets/emdb/emdb_test.npz",
        "EMDB 1's people",
        "https://eth-ait.github.io/emdb (free account)",
        "extract it in datasets/emdb, then: python tools/prepare_data.py emdb; or put the published file at "
        "datasets/EMDB/test.npz",
        "test_annotations",
        ("evaluation",),
    ),
)
# Annotation files of ours, and where the published instructions put theirs.
_PUBLISHED_PLACES = {
    "datasets/3dpw/3dpw_test.npz": "datasets/3DPW/3DPW_test.npz",
    "datasets/3dpw/3dpw_validation.npz": "datasets/3DPW/3DPW_validation.npz",
    "datasets/emdb/emdb_test.npz": "datasets/EMDB/test.npz",
}


def find_annotations(path: str | Path) -> Path:
    """The annotation file `path`, or, if it is missing, the place of 3DPW's and EMDB's in the published instructions.

    If only the other file or both exist, a line that is printed once says which one is read.
    """
    path = Path(path)
    for ours, published in _PUBLISHED_PLACES.items():
        if path.as_posix() == ours or path.as_posix().endswith(f"/{ours}"):
            other = Path(path.as_posix().removesuffix(ours) + published)
            if not other.is_file():
                continue
            if not path.is_file():
                _say_once(f"{path} is not there: {other} is read.")
                return other
            if not path.samefile(other):  # it is, where a file system does not tell capitals from small letters
                _say_once(f"{path} is read, and {other} is not (data.path={other} reads it).")
    return path


@cache
def _say_once(line: str) -> None:
    print(line)


def describe(file: UserFile) -> str:
    """Where a file comes from and what to do with it, as one line."""
    return f"{file.what}, from {file.source}; {file.how}"


def missing(path: str | Path) -> str:
    """A sentence for a file that is not there, with its source if it belongs to the published setups."""
    path = Path(path)
    for file in FILES:
        if path.as_posix().endswith(file.path.split("/", 1)[-1]):
            return f"{path} is missing: {describe(file)}. (python tools/check_setup.py lists every file.)"
    return f"{path} is missing."


def require(path: str | Path) -> None:
    """Check that a file is there.

    Raises:
        FileNotFoundError: if it is not, see `missing`.
        ValueError: if there is a folder in its place.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file is expected (has an archive been unpacked?).")
    if not path.is_file():
        raise FileNotFoundError(missing(path))
