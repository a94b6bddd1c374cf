"""bfloat16 where the device has it, and only there."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mega.backbones import BlazePose, EfficientNetLite0
from mega.training.trainer import build_trainer
from mega_common import device as precision
from mega_common.device import choose_precision
from tests.helpers.fake_files import composed

ROOT = Path(__file__).resolve().parents[2]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture(params=[True, False], ids=["has_it", "lacks_it"])
def has_it(request, monkeypatch) -> bool:
    """Devices of this machine with bfloat16, or without."""
    monkeypatch.setattr(precision, "_bfloat16", lambda device_type: (request.param, "the reason"))
    return request.param


def test_what_is_chosen_and_said(has_it: bool) -> None:
    said: list[str] = []
    assert choose_precision("auto", "cpu", said.append) == ("bf16" if has_it else "fp32")
    assert said == [f"precision=auto is {'bf16' if has_it else 'fp32'} here: the reason."]
    said.clear()
    assert choose_precision("fp32", "cpu", said.append) == "fp32"
    assert said == []
    assert choose_precision("bf16", "cpu", said.append) == "bf16"
    assert said == ([] if has_it else ["precision=bf16 was asked for, but the reason; fp32 is faster."])
    with pytest.raises(ValueError, match="precision=fp17 is not known; choose from fp32, bf16, auto"):
        precision.choose_precision("fp17", "cpu")


@pytest.mark.parametrize(
    ("asked", "with_it", "without"),
    [("auto", "bf16-mixed", "32-true"), ("bf16-mixed", "bf16-mixed", "bf16-mixed"), ("32-true", "32-true", "32-true")],
)
def test_precision_of_a_trainer(has_it: bool, asked: str, with_it: str, without: str, capsys) -> None:
    config = composed("train_mega", f"trainer.precision={asked}")
    trainer = build_trainer(config, logger=False, enable_checkpointing=False)
    assert trainer.precision == (with_it if has_it else without)
    said = capsys.readouterr().out
    assert ("the reason" in said) == (asked == "auto" or (asked == "bf16-mixed" and not has_it))


@pytest.mark.parametrize(("n_gpus", "auto"), [(0, "cpu"), (2, "cuda:1")])
def test_devices_by_name(n_gpus: int, auto: str, monkeypatch) -> None:
    """Under torchrun, each process has the GPU of its number."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(precision.torch, "zeros", lambda *_, device: torch.empty(1, device="meta"))
    found = {name: str(precision.read_device(name)) for name in ("auto", "cpu", "cuda", "cuda:0", "mps")}
    assert found == {"auto": auto, "cpu": "cpu", "cuda": "cuda:1", "cuda:0": "cuda:0", "mps": "mps"}


def test_a_device_that_cannot_be_used_is_named() -> None:
    with pytest.raises(ValueError, match=r"device=tpu is not known; choose from auto, cpu, cuda, cuda:N, mps"):
        precision.read_device("tpu")
    with pytest.raises(ValueError, match=r"device=cuda:99 cannot be used here: "):
        precision.read_device("cuda:99")


def test_defaults_of_the_scripts() -> None:
    """Trainings follow the device; what is measured and shown does not depend on it."""
    for script in ("train_mega", "pretrain_mega"):
        assert composed(script).trainer.precision == "auto"
        assert composed(script, "trainer=gpu").trainer.precision == "auto"
    for script in ("demo", "test_mega"):
        assert composed(script).precision == "fp32"


@pytest.mark.parametrize(
    "build",
    [lambda: BlazePose(frozen_blocks=2), lambda: EfficientNetLite0(pretrained=False, frozen_stages=2)],
    ids=["blazepose", "efficientnet_lite0"],
)
def test_frozen_blocks_follow_the_device(has_it: bool, build) -> None:
    backbone = build()
    kinds: set[torch.dtype] = set()

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kinds.add(output.dtype)

    for layer in backbone.blocks[0].modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(look)
    images = torch.rand(2, 3, 64, 64)
    backbone.train()(images)
    assert kinds == {torch.bfloat16 if has_it else torch.float32}
    kinds.clear()
    backbone.eval()(images)
    assert kinds == {torch.float32}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the imitation is of such CPUs")
@pytest.mark.parametrize("limits", [AVX2, {"ONEDNN_MAX_CPU_ISA": "AVX2"}], ids=["all", "onednn"])
@pytest.mark.slow
def test_a_cpu_with_avx2_has_no_bfloat16(limits: dict[str, str]) -> None:
    """As most laptops; the variables have to be set before PyTorch is loaded."""
    program = (
        "import json; from mega_common.device import *; said = [];"
        "chosen = [choose_precision(asked, 'cpu', said.append) for asked in ('auto', 'bf16')];"
        "print(json.dumps([has_bfloat16('cpu'), chosen, said]))"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | limits, capture_output=True, text=True, check=True)
    has_it, chosen, said = json.loads(result.stdout)
    assert has_it is False
    assert chosen == ["fp32", "bf16"]
    assert len(said) == 2
    assert all("57 times slower" in line for line in said)
