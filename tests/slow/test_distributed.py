"""Two processes compute what one with twice the batch does."""

import csv
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch.utils.data import TensorDataset

from mega.data.loading import TrainingBatches, evaluation_loader
from mega_common.distributed import BatchDropout, draw_rows, masked_mean, own_rows
from mesh_vq_vae.quantizer import ResidualQuantizer, VectorQuantizerEMA
from tests.helpers.small_trainings import ROOT, make_pictures, small_trainings

QUANTIZERS = {
    "published": lambda: VectorQuantizerEMA(16, 3),
    "restarting": lambda: VectorQuantizerEMA(16, 3, restart_below=0.5, start_from_data=True),
    "residual": lambda: ResidualQuantizer(2, n_codes=8, dim=3),
}


def quantize(kind: str, batches: torch.Tensor) -> dict:
    """What a quantizer is and gives after training on this process's rows of batches (T, B, N, 3)."""
    torch.manual_seed(0)
    quantizer, losses, perplexities = QUANTIZERS[kind]().train(), [], []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        result = quantizer(own_rows(batch))
        losses.append(result.loss.detach())
        perplexities.append(result.perplexity)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    return {"state": state, "loss": torch.stack(losses), "perplexity": torch.stack(perplexities)}


def draws() -> dict:
    """Random numbers of a training step, and a mean over places that one process has more of than the other."""
    torch.manual_seed(3)
    rows = draw_rows(lambda n: torch.rand(n, 5), 4 // _n_processes())
    dropped = BatchDropout(0.5).train()(torch.ones(4 // _n_processes(), 6))
    values, mask = torch.arange(8.0).view(4, 2), torch.tensor([[1, 1], [1, 0], [0, 0], [0, 1]]).bool()
    return {"rows": rows, "dropped": dropped, "mean": masked_mean(own_rows(values), own_rows(mask))}


def _n_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _process(rank: int, folder: str, batches: torch.Tensor) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {kind: quantize(kind, batches) for kind in QUANTIZERS} | {"draws": draws()}
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[torch.Tensor, list[dict]]:
    folder = tmp_path_factory.mktemp("gloo")
    batches = torch.randn(12, 4, 6, 3, generator=torch.Generator().manual_seed(1))
    mp.spawn(_process, (str(folder), batches), nprocs=2)
    return batches, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_codebooks_are_one(kind, two_processes):
    batches, ranks = two_processes
    alone = quantize(kind, batches)
    for name, value in alone["state"].items():
        assert torch.equal(ranks[0][kind]["state"][name], ranks[1][kind]["state"][name]), name
        torch.testing.assert_close(ranks[0][kind]["state"][name], value)
    torch.testing.assert_close((ranks[0][kind]["loss"] + ranks[1][kind]["loss"]) / 2, alone["loss"])
    for rank in ranks:
        torch.testing.assert_close(rank[kind]["perplexity"], alone["perplexity"])


def test_random_draws_and_means_are_those_of_the_whole_batch(two_processes):
    alone, ranks = draws(), [rank["draws"] for rank in two_processes[1]]
    for name in ("rows", "dropped"):
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), alone[name])
    torch.testing.assert_close((ranks[0]["mean"] + ranks[1]["mean"]) / 2, alone["mean"])
    assert alone["mean"] == pytest.approx((0 + 1 + 2 + 7) / 4)


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_of_all_processes_are_those_of_one(shuffle):
    alone = list(TrainingBatches(50, 12, 7, 3, shuffle=shuffle))
    shared = [list(TrainingBatches(50, 4, 7, 3, rank, 3, shuffle=shuffle)) for rank in range(3)]
    assert [list(chain(*batches)) for batches in zip(*shared, strict=True)] == alone
    used = list(chain(*alone))
    assert len(set(used)) == len(used) == 48  # two rows do not fill a batch
    assert (used == sorted(used)) is not shuffle


def test_an_epoch_goes_on_where_it_was_left():
    whole = TrainingBatches(50, 4, seed=7, epoch=3)
    rest = TrainingBatches(50, 4, seed=7, epoch=3, first=5)
    assert list(rest) == list(whole)[5:]
    assert len(rest) == len(whole) == 12
    assert list(TrainingBatches(50, 4, seed=7, epoch=4)) != list(whole)


def test_too_few_rows_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="7 training rows do not fill one batch of 4 on 2"):
        TrainingBatches(7, 4, seed=0, epoch=0, world_size=2)


def test_every_row_is_evaluated_once():
    class Trainer:
        global_rank, world_size = 0, 3

    rows = []
    for Trainer.global_rank in range(3):
        loader = evaluation_loader(TensorDataset(torch.arange(10)), 2, Trainer)
        rows += [int(row) for (batch,) in loader for row in batch]
    assert sorted(rows) == list(range(10))
    with pytest.raises(ValueError, match="cannot be shared out"):
        evaluation_loader(TensorDataset(torch.arange(2)), 2, Trainer)


# A loss, and each gradient, is a sum of up to some 10^6 products, which two processes add up in another order. Rounding
# errors of float32, each up to 2^-24 of a term and independent of one another, add up to sqrt(10^6) times that (Higham
# and Mary, SIAM Journal on Scientific Computing 41(5), 2019). All losses are sums of positive terms: none is the small
# difference of large numbers, for which this would not hold.
ROUNDING = 1000 * 2**-24
# Adam divides a gradient by its own size, so where it is nothing but rounding, a weight still moves by a whole learning
# rate, to one side or the other. From a few times 2^-24, differences grow 10 to 20 times per step by this (measured):
# they stay below the bound in the steps before the third update.
FIRST_STEPS = 3


def losses(output: Path) -> dict[str, dict[int, float]]:
    """{name: {step: value}} of what a run logged of its training."""
    with (output / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("train/") and name not in _CLOCKS]
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in names}


_CLOCKS = ("train/data_wait_percent", "train/steps_per_second")


@pytest.mark.parametrize("stage", ["tokenizer", "pretraining", "image"])
def test_two_processes_train_as_one(stage, tmp_path):
    if stage == "image":
        make_pictures(tmp_path)
    curves = {}
    for trainer, batch_size in (("cpu", 8), ("ddp_sim", 4)):
        command = small_trainings(tmp_path, batch_size)[stage]
        output = tmp_path / trainer
        command += [f"trainer={trainer}", f"output={output}", "trainer.max_epochs=2"]
        if stage == "tokenizer":
            command += ["data.batches_per_epoch=6"]
        if stage == "image":
            # Frozen blocks compute in bfloat16 where the device has it.
            command += ["backbone.frozen_blocks=0", "training.backbone_steps=2"]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        curves[trainer] = losses(output)
    one, two = curves["cpu"], curves["ddp_sim"]
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].keys() == two[name].keys()
        assert len(one[name]) >= 6, name
        early = [step for step in one[name] if step < FIRST_STEPS]
        assert early, name
        alone, shared = (np.array(list(curve[name].values())) for curve in (one, two))
        np.testing.assert_allclose(shared[: len(early)], alone[: len(early)], rtol=ROUNDING, err_msg=name)
        # Later the two drift apart, the tokenizer's most: its codebook starts from random latents, some drawn twice,
        # and which of two equal codes is the nearest hangs on the last bit. Other rows or other random numbers would
        # change a loss by as much as it changes from batch to batch; what is left must be far less.
        drift = np.sqrt(np.mean((shared - alone) ** 2))
        assert drift <= 0.1 * alone.std(), f"{name}: {drift} where batches differ by {alone.std()}"
    # It is not for standing still that they agree.
    first = list(next(iter(one.values())).values())
    assert np.ptp(first) > 1e-3 * np.abs(first).max()
