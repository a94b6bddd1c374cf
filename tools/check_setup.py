"""Check which files of the published setups are there and look right, and say where the others come from.

    python tools/check_setup.py                 for mega_hrnet, mega_resnet and mega_vit, in the current folder
    python tools/check_setup.py root=DIR        in another folder

The default setup needs none of them. The exit status is 1 while any file is missing or wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from mega.backbones import load_pretrained
from mega.bodies.smplh import read_regressor, read_smplh
from mega.checkpoints import BACKBONES, PUBLISHED_SETUPS, read_state
from mega.config import main
from mega.data.motions import motion_files, read_motion
from mega.data.smpl_annotations import SMPLAnnotations
from mega.external_files import FILES, UserFile, find_annotations
from mega.model import CVQMAE, VQMAE
from mega_common.weights_io import differences, read_released

_STEPS = {
    "demo": "demo",
    "evaluation": "evaluation, besides those for the demo",
    "pretraining": "pre-training",
    "training": "training on pictures, besides those for the demo",
}
# Some tensors of the released tokenizer, enough to tell it from its variants.
_TOKENIZER = {
    "vq_vae._embedding.weight": (512, 9),
    "encoder.model.w_weights0": (6890, 10, 9),
    "decoder.model.w_weights7": (54, 19, 9),
}


@main("check_setup")
def run(config: DictConfig) -> int:
    return 0 if check_setup(config.root) else 1


def check_setup(root: str | Path) -> bool:
    """Print the state of each experiment's files; True if all of them are there and look right."""
    complete, missing = True, {}
    for experiment in PUBLISHED_SETUPS:
        files = [file for file in FILES if not file.experiments or experiment in file.experiments]
        faults = {file.path: _fault(file.place(root), file, experiment) for file in files}
        print(f"\nexperiment={experiment}")
        width = max(len(file.path) for file in files)
        for file in files:
            state, remark = faults[file.path]
            missing |= {file: None} if state == "missing" else {}
            print(f"  {state:<7}  {file.path:<{width}}  {remark or file.what}")
        for step, name in _STEPS.items():
            lacking = [f.path for f in files if step in f.needed_for and faults[f.path][0] != "ok"]
            print(f"  -> files for {name}: " + ("all there" if not lacking else f"{len(lacking)} missing or wrong"))
        complete &= all(state == "ok" for state, _ in faults.values())
    if missing:
        print("\nWhere the missing files come from:")
    for source in dict.fromkeys(file.source for file in missing):
        print(f"\n  {source}")
        for file in (file for file in missing if file.source == source):
            print(f"    {file.path}: {file.how}")
    print("\nThe default setup, Anny, needs none of these files.")
    return complete


def _fault(path: Path, file: UserFile, experiment: str) -> tuple[str, str]:
    """("ok" | "missing" | "wrong", a remark)."""
    if file.kind == "test_annotations":
        path = find_annotations(path)
    if not path.exists():
        return "missing", ""
    try:
        # Names and shapes are enough, and take no memory. PyTorch warns for each tensor that it copies nothing.
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            _check(path, file.kind, BACKBONES[PUBLISHED_SETUPS[experiment].backbone])
    except (OSError, ValueError) as error:
        return "wrong", str(error)
    return "ok", ""


def _check(path: Path, kind: str, backbone: Callable[[], nn.Module]) -> None:
    """Raise ValueError or OSError that says what is wrong with a file, if anything is."""
    match kind:
        case "smplh":
            read_smplh(path)
        case "regressor24":
            read_regressor(path, 24)
        case "regressor17":
            read_regressor(path, 17)
        case "annotations":
            _check_pictures(path, (path.parent, path.parents[2]), skip_bad_rows=True)
        case "test_annotations":
            # Their names start from the project's folder: datasets/3dpw/….
            _check_pictures(path, (path.parents[2],), skip_bad_rows=False)
        case "tokenizer":
            state = read_released(path)
            expected = {key: torch.empty(shape) for key, shape in _TOKENIZER.items()}
            if found := differences(expected, {key: state[key] for key in expected if key in state}):
                raise ValueError(f"{path} is not the released tokenizer: {found}.")
        case "vqmae" | "cvqmae":
            model = VQMAE() if kind == "vqmae" else CVQMAE(backbone())
            own = model.state_dict()
            if found := differences(own, read_state(path, type(model).__name__, own)):
                raise ValueError(f"The weights in {path} do not fit this {type(model).__name__}: {found}.")
        case "backbone":
            load_pretrained(backbone(), path)
        case "motions":
            first = path / next(iter(motion_files(path)))  # training checks the others
            try:
                read_motion(first)
            except ValueError as error:
                raise ValueError(f"{first}: {error}") from error


def _check_pictures(path: Path, places: Sequence[Path], skip_bad_rows: bool) -> None:
    annotations = SMPLAnnotations.load(path, skip_bad_rows)
    root, names = annotations.picture_root(places), dict.fromkeys(annotations.imgname)
    lacking = [name for name in names if not (root / name).is_file()]
    if lacking:
        raise ValueError(
            f"{path}: {len(lacking)} of {len(names)} annotated pictures are missing, the first was looked for at "
            f"{' and at '.join(str(place / lacking[0]) for place in places)}"
        )


if __name__ == "__main__":
    run()
