"""Machines unlike ours: Windows, terminals that print ASCII only, no embreex, a Mac; how devices are named."""

import ast
import io
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mega.config import OPTIONS, main
from mega.rendering.raycast import has_embree
from mega_common import device as devices

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py")]
MODULES = [path for package in ("mega", "mega_common", "mesh_vq_vae") for path in (ROOT / package).rglob("*.py")]

# What Windows lacks is taken away once the other libraries, which ask for the system, are imported.
LIKE_WINDOWS = """
import importlib, os, pkgutil, runpy, signal, sys
import anny, cv2, hydra._internal.hydra, lightning.pytorch.loggers, matplotlib.pyplot, scipy.stats, skimage.data, smplx
import submitit, timm, torch.utils.tensorboard, torchvision, tqdm.contrib.logging, trimesh

for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGCHLD", "SIGQUIT", "SIGCONT", "alarm"):
    delattr(signal, name)
for name in ("fork", "uname", "sched_getaffinity", "getuid", "geteuid", "killpg", "setsid", "nice", "sysconf", "chown"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"):
    sys.modules[name] = None
failed = []
def attempt(call, name, *arguments, **options):
    try:
        call(name, *arguments, **options)
    except BaseException as error:
        failed.append(f"{name}: {error!r}")
for package in ("mega_common", "mesh_vq_vae", "mega"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        attempt(importlib.import_module, module.name)
for script in sys.argv[1:]:
    attempt(runpy.run_path, script, run_name="imported")
sys.exit("\\n".join(failed) or 0)
"""


@pytest.mark.slow  # a process that imports everything
def test_nothing_needs_posix_to_be_imported() -> None:
    command = [sys.executable, "-c", LIKE_WINDOWS, *map(str, SCRIPTS)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_text_files_are_read_and_written_as_utf8() -> None:
    """The default is the code page on Windows."""
    for path in [*SCRIPTS, *MODULES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args)
            of_bytes = called in ("Image.open", "file.zip.open") or binary
            method = called.rpartition(".")[2]
            if method in ("read_text", "write_text") or (method == "open" and not of_bytes):
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path}:{node.lineno}"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_terminal_cannot_print_does_not_end_a_script(monkeypatch, encoding: str) -> None:
    @main("check_setup")
    def script(_config) -> int:
        print("─ 3 × 4 – 日本 caf\udce9.jpg")  # the last name is not UTF-8 on the disk
        return 0

    printed = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["check_setup.py"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    with pytest.raises(SystemExit) as end:
        script()
    sys.stdout.flush()
    assert end.value.code == 0
    expected = {"ascii": "? 3 ? 4 ? ?? caf?", "cp1252": "? 3 × 4 – ?? caf?", "utf-8": "─ 3 × 4 – 日本 caf?"}
    assert printed.getvalue().decode(encoding).strip() == expected[encoding] + ".jpg"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run("demo.py", "input=…") -> (exit status, stdout, stderr)."""

    def run(script: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def no_embree(monkeypatch):
    has_embree.cache_clear()
    for name in ("embreex", "embreex.rtcore_scene", "embreex.mesh_construction"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    has_embree.cache_clear()


def test_the_demo_draws_without_embree_and_one_line_says_so(run, no_embree, toy_weights, tmp_path) -> None:
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (96, 64), "grey").save(tmp_path / name)
    arguments = (f"input={tmp_path}/*.jpg", f"weights={toy_weights}", "mode=stochastic", "samples=2", "max_side=96")
    status, _, errors = run("demo.py", *arguments)
    assert status == 0
    assert errors.count("embreex cannot be imported") == 1
    written = {path.name for path in (tmp_path / "demo_out").iterdir()}
    assert written == {f"{name}{end}" for name in "ab" for end in (".npz", "_p0.glb", "_overlay.png")}
    drawn = np.asarray(Image.open(tmp_path / "demo_out" / "a_overlay.png"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100, "the body is not drawn"


WITH_DEVICE = {"demo": "demo.py", "generate": "generate.py", "test_mega": "test_mega.py"}
WITH_DEVICE |= {"latent_analysis": "tools/latent_analysis.py"}


def test_every_option_for_a_device_is_tried() -> None:
    assert {name for name, options in OPTIONS.items() if "device" in options.__dataclass_fields__} == set(WITH_DEVICE)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="for machines without MPS")
@pytest.mark.parametrize("config", WITH_DEVICE)
def test_every_script_reads_devices_alike(run, config: str, tmp_path) -> None:
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jpg")
    words = ("input=a.jpg",) if config == "demo" else ()
    for name, said in {
        "gpu": "device=gpu is not known; choose from auto, cpu, cuda, cuda:N, mps.",
        "cuda:77": "device=cuda:77 cannot be used here: ",
        "mps": "device=mps cannot be used here: ",
    }.items():
        status, _, errors = run(WITH_DEVICE[config], f"device={name}", *words)
        assert status == 1
        assert errors.startswith(said)
        assert errors.count("\n") == 1


def test_auto_is_a_macs_gpu_where_it_computes_what_the_cpu_does(monkeypatch, caplog) -> None:
    real = devices._sample_of_operations

    def read(on_mps) -> str:
        """What device=auto is on a Mac whose GPU does this."""
        caplog.clear()
        devices._mps_works.cache_clear()
        monkeypatch.setattr(devices, "_sample_of_operations", lambda name: on_mps() if name == "mps" else real(name))
        return str(devices.read_device("auto"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device="cpu": zeros(*size, device="meta"))
    assert read(lambda: real("cpu") + 1e-5) == "mps"
    assert not caplog.records

    def lacks_an_operation() -> torch.Tensor:
        raise NotImplementedError("The operator 'aten::_foo' is not implemented for the MPS device.\nMore.")

    for on_mps, reason in ((lambda: real("cpu") + 0.1, "other results"), (lacks_an_operation, "aten::_foo")):
        assert read(on_mps) == "cpu"
        (record,) = caplog.records
        assert "device=auto is cpu here, since the Mac's GPU (mps) cannot be used: " in record.getMessage()
        assert reason in record.getMessage()
        assert "\n" not in record.getMessage()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert read(lacks_an_operation) == "cpu"
    assert not caplog.records
    devices._mps_works.cache_clear()
