"""Where files are: what the project or the installed package holds, and what users of the published setups fetch.

The published files cannot be shipped here. `external_files.yaml` says where each comes from; tools/check_setup.py and
every error about a missing file take it from there.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parents[1]  # the checkout; of an installed package, the folder it is in


def _bundled(in_package: str, in_project: str) -> Path:
    """A folder that is inside the package `mega` in the wheel, and next to the package in a checkout."""
    packaged = PROJECT / "mega" / in_package
    return packaged if packaged.is_dir() else PROJECT / in_project


CONFIGS = _bundled("configs", "configs")
SHIPPED_WEIGHTS = _bundled("weights/anny_lite", "checkpoint/anny_lite")
MOVENET = _bundled("weights/movenet", "checkpoint/movenet")


def as_on_disk(path: str | Path) -> Path:
    """A path with its accents as they are on the disk; the path itself where nothing has such a name.

    Unicode has é as one character (NFC) and as e with an accent (NFD). macOS takes both for the same name and often
    writes the second; other systems take them for two names, and keyboards give the first.
    """
    path = Path(path)
    if str(path).isascii() or os.path.lexists(path):
        return path
    parent = as_on_disk(path.parent)
    composed = unicodedata.normalize("NFC", path.name)
    try:
        names = [name for name in os.listdir(parent) if unicodedata.normalize("NFC", name) == composed]
    except OSError:
        names = []
    return parent / (names[0] if len(names) == 1 else path.name)


def locate(path: str | Path) -> Path:
    """A path as it is given, from the current folder; if nothing is there, the same path from the project's folder."""
    path = as_on_disk(Path(path).expanduser())
    inside = PROJECT / path
    return inside if not path.exists() and inside.exists() else path


@dataclass(frozen=True, eq=False)
class UserFile:
    """A file or folder of the published setups. `external_files.yaml` lists them and explains the attributes."""

    path: str
    what: str
    source: str
    how: str
    kind: str
    needed_for: list[str]
    experiments: list[str] = field(default_factory=list)
    in_hub: bool = False

    def place(self, root: str | Path = ".") -> Path:
        """Its path, for a project in the folder `root`."""
        return (Path(torch.hub.get_dir()) / "checkpoints" if self.in_hub else Path(root)) / self.path


_TABLE = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_suffix(".yaml")), resolve=True)
FILES = tuple(UserFile(**entry) for entry in _TABLE["files"])
IMAGENET = next(file for file in FILES if file.in_hub)  # torchvision's ResNet50_Weights.DEFAULT
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
        if f"/{path.as_posix()}".endswith(f"/{ours}"):
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
