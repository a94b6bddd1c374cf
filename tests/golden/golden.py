"""Golden files: what the published system computes on made-up weights, for ours to be compared with.

The folder is `MEGA_GOLDEN_DIR`, by default `../shared/golden` beside the repository; without it the tests are skipped.
A family of files is known by the beginning of their names; sizes are read from each file; `recipe.py` beside the files
makes the weights.
"""

import importlib.util
import json
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN_DIR = Path(os.environ.get("MEGA_GOLDEN_DIR", Path(__file__).parents[3] / "shared" / "golden"))


class Arrays(dict):
    """The content of a file by name; remembers what was read, so that a test can show that it left nothing out."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._read = set()

    def __getitem__(self, name: str):
        self._read.add(name)
        return super().__getitem__(name)

    def assert_all_read(self) -> None:
        """Fail with the names of the arrays that no check has looked at."""
        assert not self.keys() - self._read, f"arrays that the test did not check: {sorted(self.keys() - self._read)}"


def golden_files(prefix: str) -> list[Path]:
    """Every golden file of a family."""
    return sorted(path for path in GOLDEN_DIR.glob("*.npz") if path.name.startswith(prefix))


def golden_cases(prefix: str) -> pytest.MarkDecorator:
    """Run a test once for every file of a family, as its argument `path`; skip it when there is none."""
    cases = [pytest.param(path, id=path.stem) for path in golden_files(prefix)]
    skipped = pytest.param(None, marks=pytest.mark.skip(reason=f"no {prefix}*.npz in {GOLDEN_DIR} (MEGA_GOLDEN_DIR)"))
    return pytest.mark.parametrize("path", cases or [skipped])


def load(path: Path) -> tuple[Arrays, dict]:
    """(arrays, config) of a file: numbers as tensors, JSON (`state_keys…`) as lists, other strings as they are."""
    arrays = Arrays()
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            value = file[name]
            if value.dtype.kind in "US":
                is_json = value.ndim == 0 and value.item()[:1] in "[{"
                arrays[name] = json.loads(value.item()) if is_json else value
            else:
                arrays[name] = torch.from_numpy(value)
    return arrays, arrays.pop("config", {})


@cache
def recipe(folder: Path) -> ModuleType:
    """The `recipe.py` that lies beside the golden files."""
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(model: nn.Module, path: Path) -> nn.Module:
    """Give a model the made-up weights of the golden file at `path`, and set it to evaluation mode."""
    return recipe(path.parent).fill(model).eval()


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-4, name: str = "") -> None:
    """Every number within `rtol` times the spread (standard deviation) of all that are expected."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    spread = expected.std(correction=0) if expected.numel() > 1 else expected.abs().max()
    # Written so that a NaN fails.
    difference = (actual - expected).abs().max()
    limit = rtol * max(spread.item(), torch.finfo(torch.float32).eps)
    assert difference <= limit, f"{name}: {difference:.3g} off where {limit:.3g} is allowed"


def assert_same(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Integers or flags that are exactly equal, whatever their type."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    wrong = (actual.double() != expected.double()).sum().item()
    assert wrong == 0, f"{name}: {wrong} of {expected.numel()} differ"


def assert_state_keys(model: nn.Module, expected: list) -> None:
    """The state dict has the released keys, in the released order, with their shapes and dtypes."""
    actual = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    assert actual == expected
