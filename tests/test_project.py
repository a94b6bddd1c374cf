"""The project itself: configs, scripts, the installed package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

from mega.config import compose as checked

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PRIMARY = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("tool", "training_run"))
GROUPS = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("*/*.yaml"))


def composed(name: str, overrides: list[str]) -> DictConfig:
    return checked(name, overrides)


def check_targets(config: DictConfig) -> int:
    """Every `_target_` below names something that is there; returns how many."""
    count = 0
    for node in walk(OmegaConf.to_container(config, resolve=False)):
        if "_target_" in node:
            target = node["_target_"]
            try:
                get_class(target)
            except ValueError:
                get_method(target)
            count += 1
    return count


def walk(node):
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from walk(child)


@pytest.mark.parametrize("name", PRIMARY)
def test_every_script_has_a_config_that_composes(name):
    assert any((folder / f"{name}.py").is_file() for folder in (ROOT, ROOT / "tools"))
    config = composed(name, [])
    check_targets(config)
    OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize("choice", GROUPS)
def test_every_group_composes(choice):
    group, option = choice.split("/")
    if group == "experiment":
        assert check_targets(composed("demo", [f"experiment={option}"])) > 3
        return
    if group == "recipe":
        assert check_targets(composed("train_mega", ["experiment=mega_hrnet", f"+recipe={option}"])) > 3
        return
    users = [name for name in PRIMARY if group in composed(name, [])]
    if not users:
        pytest.fail(f"no script uses the config group {group}")
    for name in users:
        config = composed(name, [f"{group}={option}"])
        assert check_targets(config[group]) > 0


def test_a_training_composes_for_slurm():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "trainer=slurm", "output=runs/x"]
        config = compose("train_mega", overrides, return_hydra_config=True)
    assert get_class(config.hydra.launcher._target_).__name__ == "SlurmLauncher"
    assert config.hydra.launcher.tasks_per_node == config.hydra.launcher.gpus_per_node
    assert config.hydra.sweep.dir == "runs/x/jobs"
    assert config.trainer.num_nodes == 1


@pytest.mark.parametrize("script", [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "tools").glob("*.py"))], ids=str)
def test_a_script_begins_with_how_it_is_called(script):
    text = script.read_text()
    assert text.startswith('"""')
    assert f"python {script.relative_to(ROOT)}" in text.split('"""')[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the packages as `pip install .` puts them, from a wheel of a copy of the project."""
    copy, wheels, target = (tmp_path_factory.mktemp(name) for name in ("project", "wheels", "target"))
    for name in ("mega", "mega_common", "mesh_vq_vae", "configs", "checkpoint/anny_lite", "checkpoint/movenet"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, copy], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", target, *wheels.glob("*.whl")], check=True)
    return target


@pytest.mark.slow
def test_the_wheel_is_complete(installed):
    for package in ("mega", "mega_common", "mesh_vq_vae"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / path.relative_to(ROOT)).is_file(), f"{path} is missing: see pyproject.toml"
    for path in CONFIGS.rglob("*.yaml"):
        assert (installed / "mega" / "configs" / path.relative_to(CONFIGS)).is_file()


@pytest.mark.slow
def test_the_installed_package_finds_its_weights_and_configs_from_any_folder(installed, tmp_path):
    code = f"""
import mega, numpy as np
from mega.config import CONFIGS
assert mega.__file__.startswith({str(installed)!r}), mega.__file__
assert str(CONFIGS).startswith({str(installed)!r}) and (CONFIGS / "demo.yaml").is_file()
people = mega.load("anny_lite", device="cpu")(np.zeros((64, 64, 3), np.uint8), [[0, 0, 64, 64]])
assert people.vertices.shape == (1, 13348, 3)
"""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
