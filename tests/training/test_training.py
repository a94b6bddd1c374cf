"""The three training scripts for a few steps each, from bodies to a demo with their weights; losses and schedules."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from mega.checkpoints import BACKBONES, load_cvqmae, save_model
from mega.geometry import rot6d_to_matrix
from mega.model import CVQMAE, VQMAE, masked_cross_entropy
from mega.training.cvqmae import AuxiliaryHead, CVQMAETraining, CVQMAETrainingConfig, neighbour_targets
from mega.training.trainer import prepare_export
from mega.training.vqmae import AdamWConfig, ParameterGroup
from mega_common.weights_io import read_weights
from tests.helpers.fake_files import composed
from tests.helpers.toy import CROP, toy_model, toy_tokenizer
from train_mega import export, load_start

ROOT = Path(__file__).parents[2]


def run(script: str, *overrides: str) -> str:
    result = subprocess.run([sys.executable, script, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def steps_logged(output: Path) -> int:
    """The last step in any of a run's CSV logs."""
    steps = [0]
    for path in output.glob("csv/*/metrics.csv"):
        header, *rows = path.read_text().splitlines()
        column = header.split(",").index("step")
        steps += [int(row.split(",")[column]) for row in rows]
    return max(steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def tokenizer(folder) -> Path:
    """A tokenizer of a few steps: trained, resumed by the same command, exported."""
    weights = folder / "tokenizer.safetensors"
    options = [f"output={folder / 'tokenizer'}", f"weights={weights}", "data.batch_size=4", "data.batches_per_epoch=3"]
    options += [
        "data.val_meshes=4",
        "data.test_meshes=4",
        "training.unquantized_steps=2",
        "trainer.log_every_n_steps=1",
    ]
    run("train_mesh_vqvae.py", *options, "trainer.max_steps=3")
    assert steps_logged(folder / "tokenizer") == 2
    assert "resuming from" in run("train_mesh_vqvae.py", *options, "trainer.max_steps=6")
    assert steps_logged(folder / "tokenizer") >= 5
    assert list((folder / "tokenizer" / "panels").glob("*.png"))
    run("train_mesh_vqvae.py", *options, "mode=export")
    assert "test/vertex_error_mm" in run("train_mesh_vqvae.py", *options, "mode=test")
    return weights


@pytest.fixture(scope="module")
def vqmae(folder, tokenizer) -> Path:
    weights = folder / "vqmae.safetensors"
    options = [f"output={folder / 'pretraining'}", f"weights={weights}", f"tokenizer_weights={tokenizer}"]
    options += [f"data.cache={folder / 'tokens'}", "data.train_bodies=16", "data.val_bodies=8", "data.test_bodies=8"]
    options += ["data.batch_size=8", "model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1"]
    run("pretrain_mega.py", *options, "trainer.max_steps=4")
    run("pretrain_mega.py", *options, "mode=export")
    assert "token_accuracy" in run("pretrain_mega.py", *options, "mode=test")
    return weights


@pytest.fixture(scope="module")
def pictures(folder) -> Path:
    data = folder / "pictures"
    run("tools/make_synthetic.py", f"folder={data}", "splits={train: 8, val: 4, test: 4}", "processes=1")
    return data


@pytest.mark.slow
def test_from_bodies_to_the_demo(folder, tokenizer, vqmae, pictures):
    weights = folder / "cvqmae.safetensors"
    options = [f"output={folder / 'image'}", f"weights={weights}", f"tokenizer_weights={tokenizer}"]
    options += [f"pretrained={vqmae}", f"data.cache={folder / 'tokens'}", f"data.folder={pictures}", "data.workers=0"]
    options += ["data.batch_size=4", "crop.size=64", "loss_points=8"]
    options += ["model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1"]
    options += ["trainer.log_every_n_steps=1"]
    run("train_mega.py", *options, "trainer.max_steps=6", "training.backbone_steps=1", "training.decoded_every=2")
    assert list((folder / "image" / "panels").glob("*.png"))
    # The auxiliary head learns from the first step, the transformer from the second.
    (log,) = (folder / "image").glob("csv/*/metrics.csv")
    with log.open() as file:
        steps = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(steps) == 6
    assert all(row["train/auxiliary_position"] for row in steps)
    assert [bool(row["train/tokens"]) for row in steps] == [False] + 5 * [True]
    run("train_mega.py", *options, "mode=export")
    assert load_cvqmae(weights)[1]["average"] == "flip"
    for name in ("PVE", "PA-MPJPE", "2d_keypoints_percent_of_box"):
        assert f"val/{name}" in log.read_text().splitlines()[0]
    # Another run may start from an image model, and have no auxiliary head.
    options += [f"output={folder / 'image_again'}", f"pretrained={weights}", "training.weights.auxiliary=0"]
    run("train_mega.py", *options, "trainer.max_steps=1", "training.backbone_steps=0")

    run("demo.py", f"input={pictures / 'test' / 'images'}", f"output={folder / 'out'}", f"weights={folder}")
    files = list((folder / "out").glob("*.npz"))
    assert files
    with np.load(files[0]) as result:
        assert result["vertices"].shape[1:] == (13348, 3)


def test_a_prior_for_another_codebook_is_refused(tmp_path):
    model, config = toy_model(20)
    size = {key: value for key, value in config["model"].items() if key != "cond_dim"}
    save_model(VQMAE(**size | {"codebook_size": 16}), tmp_path / "prior.safetensors", {"model": size})
    with pytest.raises(ValueError, match=r"does not fit this CVQMAE: decoder\.head\.bias has shape \(16,\) instead of"):
        load_start(model, str(tmp_path / "prior.safetensors"), None)


def factor_of_published_schedule(epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """What the config's learning rate is multiplied by at a step, in a training of some epochs."""
    trainer = SimpleNamespace(
        max_epochs=epochs,
        num_training_batches=steps_per_epoch,
        estimated_stepping_batches=epochs * steps_per_epoch,
        accumulate_grad_batches=1,
        world_size=1,
        fit_loop=SimpleNamespace(),
    )
    config = AdamWConfig(base_lr=1.0, batch_size=256, schedule="published")
    configured = config.optimizer(trainer, [ParameterGroup([torch.nn.Parameter(torch.zeros(()))])])
    return configured["lr_scheduler"]["scheduler"].lr_lambdas[0]


def test_the_published_schedule():
    """One factor per epoch: min((epoch + 1) / 20, (1 + cos(pi epoch / total)) / 2), epoch from 0."""
    factor = factor_of_published_schedule(epochs=200, steps_per_epoch=7)
    by_hand = {0: 0.05, 1: 0.1, 18: 0.95, 19: 0.97790, 20: 0.97553, 100: 0.5, 199: 6.17e-5}
    for epoch, expected in by_hand.items():
        factors = {factor(step) for step in range(7 * epoch, 7 * (epoch + 1))}
        assert len(factors) == 1
        assert factors.pop() == pytest.approx(expected, rel=1e-3)
    # In the mixture's 10 epochs the two cross before the warm-up is done.
    factor = factor_of_published_schedule(epochs=10, steps_per_epoch=1)
    assert [factor(epoch) for epoch in (4, 5, 6)] == pytest.approx([0.25, 0.3, 0.34549], rel=1e-4)


def test_the_schedule_needs_what_it_counts():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=3)
    group = ParameterGroup([torch.nn.Parameter(torch.zeros(()))])
    with pytest.raises(ValueError, match=r"schedule=published counts epochs: give trainer\.max_epochs"):
        AdamWConfig(base_lr=1e-3, batch_size=16, schedule="published").optimizer(trainer, [group])


def image_training(**options) -> CVQMAETraining:
    tokenizer = toy_tokenizer()
    model, _ = toy_model(tokenizer.n_tokens)
    config = CVQMAETrainingConfig(base_lr=1e-3, batch_size=256, **options)
    return CVQMAETraining(model, config, tokenizer, torch.arange(3), CROP)


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_sees_the_images_that_prediction_sees(channels_last):
    """Normalised once, by the model."""
    module = image_training(channels_last=channels_last).eval()
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = module.features(images)
        assert seen.is_contiguous(memory_format=torch.channels_last) or not channels_last
        torch.testing.assert_close(seen, module.model.features(images))
        by_hand = module.model.backbone((images / 255 - 0.5) / 0.5)
    torch.testing.assert_close(seen, by_hand, rtol=1e-3, atol=1e-4)


def people(tokenizer) -> dict:
    """A validation batch of four people whose meshes the tokenizer can make."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.codebook_size, (4, tokenizer.n_tokens), generator=generator)
    vertices = tokenizer.decode(tokens)
    return {
        "image": torch.randint(256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8),
        "tokens": tokens,
        "vertices": vertices,
        "rotmat": torch.linalg.qr(torch.randn(4, 3, 3, generator=generator))[0],
        "keypoints3d": tokenizer.keypoint_regressor @ vertices,
        "keypoints2d": torch.rand(4, 23, 3, generator=generator),
    }


def test_validation_has_the_loss_of_training_and_draws_nothing(monkeypatch):
    """Two validations of the same weights agree, and the random numbers of training are not touched."""
    module = image_training(weights={"points": 2.0, "auxiliary": 1.0}, reprojection="expected", backbone_steps=4).eval()
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update({k: float(v) for k, v in values.items()}))
    batch, found = people(module.tokenizer), []
    for _ in range(2):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        with torch.no_grad():
            module.validation_step(batch, 0)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(dict(logged))
    assert found[0] == found[1]
    # All terms, in the steps too in which training has none of the transformer's.
    terms = {name: logged[f"val/{name}"] for name in ("tokens", "rotation", "keypoints2d", "points", "auxiliary")}
    terms["points"] *= 2
    assert logged["val/loss"] == pytest.approx(sum(terms.values()), rel=1e-5)


@pytest.mark.parametrize(("reprojection", "learns"), [("argmax", False), ("expected", True)])
def test_whether_tokens_learn_from_the_keypoints(reprojection, learns, monkeypatch):
    """The published loss looks at the mesh of the likeliest codes, from which only rotation and camera can learn."""
    only_keypoints = {"tokens": 0.0, "rotation": 0.0, "keypoints2d": 1.0}
    module = image_training(weights=only_keypoints, reprojection=reprojection).train()
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    tokenizer, generator = module.tokenizer, torch.Generator().manual_seed(0)
    batch = people(tokenizer)
    tokens = batch["tokens"]
    batch["points"] = batch["vertices"][:, :3]
    masked = torch.arange(tokenizer.n_tokens).expand(4, -1) % 2 == 0
    features = torch.randn(4, 1280, 2, 2, generator=generator)

    logits = []
    forward = module.model.forward
    monkeypatch.setattr(module.model, "forward", lambda *args: logits.append(forward(*args)) or logits[-1])
    torch.manual_seed(0)
    loss = module._loss(features, batch, masked, "train")
    loss.backward()
    decoder = module.model.decoder
    assert (decoder.head.weight.grad is not None and bool(decoder.head.weight.grad.any())) is learns
    assert decoder.cam_predictor.weight.grad.any()
    # By hand: mean over people, keypoints, x and y of the confidence times the distance along each axis.
    torch.manual_seed(0)
    rot6d, cam = module.model.rotcam(features)
    hard = torch.where(masked, logits[0].argmax(-1), tokens)
    codes = tokenizer.vq_vae.lookup(hard)
    if learns:
        codes = torch.where(masked[..., None], logits[0].softmax(-1) @ tokenizer.codebook, codes)
    joints = tokenizer.keypoint_regressor @ tokenizer.decode_latents(codes) @ rot6d_to_matrix(rot6d).transpose(1, 2)
    projected = cam[:, None, :1] * (joints[..., :2] + cam[:, None, 1:])
    by_hand = (batch["keypoints2d"][..., 2:] * (projected - batch["keypoints2d"][..., :2]).abs()).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-5)


def test_losses_that_would_teach_nothing_are_refused():
    with pytest.raises(ValueError, match=r"weights\.points needs training\.reprojection=expected"):
        image_training(weights={"points": 1.0})


@pytest.mark.parametrize("model", [VQMAE, CVQMAE])
def test_the_published_initial_values(model):
    """Embeddings N(0, 1); linear layers as torch makes them, uniform within 1 / sqrt(inputs), biases too."""
    sizes = {"n_tokens": 9, "codebook_size": 256, "dim": 64, "encoder_depth": 1, "decoder_depth": 1}
    parts = {"backbone": torch.nn.Identity(), "cond_dim": 8} if model is CVQMAE else {}
    torch.manual_seed(0)
    network = model(**sizes, **parts, init="published").requires_grad_(False)
    assert network.encoder.proj.weight.std() == pytest.approx(1, rel=0.05)
    bound = 64**-0.5
    linear = {"head": network.decoder.head} | dict(network.encoder.transformer.named_modules())
    for name in ("head", "0.attn.qkv", "0.attn.proj", "0.mlp.fc1"):
        for values in filter(None.__ne__, (linear[name].weight, linear[name].bias)):
            assert bound * 0.9 < values.abs().max() <= bound, name
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15), name
    scaled = model(**sizes, **parts, init="scaled").requires_grad_(False)
    assert scaled.encoder.proj.weight.std() < 0.03
    with pytest.raises(ValueError, match=r"model\.init=zero is not known; choose from published, scaled"):
        model(**sizes, **parts, init="zero")


def test_everything_that_should_learn_does():
    """Each parameter that is not frozen, the auxiliary head's too, is in the optimizer once, with the right rate."""
    module = image_training(warmup_steps=2, steps=10, weights={"auxiliary": 1.0}, backbone_rate=0.5, backbone_steps=4)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert len(group_of) == sum(len(group["params"]) for group in optimizer.param_groups) == len(learning)
    for name, parameter in learning.items():
        kind = "other" if name.startswith(("auxiliary.", "model.decoder.rot", "model.decoder.cam_")) else "transformer"
        kind = "backbone" if name.startswith("model.backbone.") else kind
        assert group_of[id(parameter)] == ["backbone", "other", "transformer"].index(kind), name
    rates = []
    for _ in range(11):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    backbone, other, transformer = zip(*rates, strict=True)
    assert other[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3])
    assert backbone == pytest.approx([0.5 * rate for rate in other])
    assert transformer[:7] == pytest.approx([0, 0, 0, 0, 0.5e-3, 1e-3, 1e-3])
    assert other[10] == transformer[10] == pytest.approx(0, abs=1e-9)


@pytest.fixture
def head() -> AuxiliaryHead:
    torch.manual_seed(0)
    return AuxiliaryHead(channels=8, grid=(5, 3), tokenizer=toy_tokenizer())


def test_auxiliary_head_learns_where_things_are(head):
    """Gradient descent on the losses leads to the truth: positions, depth and codes mean what they say."""
    features = torch.randn(2, 8, 5, 3)
    n_keypoints = head.n_keypoints
    on_crop = torch.rand(2, n_keypoints, 2) * 1.6 - 0.8
    on_crop[0, 0] = torch.tensor([7.0, 0.0])  # outside of the crop: left out
    depth, codes = torch.randn(2, n_keypoints), head(features)["codes"].detach() + head.std
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(400):
        losses = head.losses(head(features), codes, on_crop, depth)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["position"] < 0.1
    assert losses["depth"] < 0.1
    assert losses["codes"] < 0.1
    # x runs along the rows of a map, y down its columns.
    predicted = head(features)
    best = head.cells[predicted["heatmaps"].argmax(-1)]  # (B, J, 2)
    assert (best - on_crop)[1].abs().max() < 0.2


def test_neighbours_share_the_target():
    codebook = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
    hard = neighbour_targets(codebook, 0)
    soft = neighbour_targets(codebook, 0.5)
    assert torch.equal(hard, torch.eye(4))
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert (soft.argmax(1) == torch.arange(4)).all()
    assert soft[0, 1] > 0.1 > 1e-6 > soft[0, 2]


def test_cross_entropy_with_distributions_is_of_masked_tokens_only():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    tokens = torch.randint(7, (2, 5), generator=generator)
    masked = torch.rand(2, 5, generator=generator) > 0.5
    one_hot = torch.eye(7)[tokens]
    loss = masked_cross_entropy(logits, one_hot, masked)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[masked], tokens[masked]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~masked] == 0).all()
    assert masked_cross_entropy(logits, one_hot, torch.zeros_like(masked)) == 0
    soft = torch.softmax(torch.randn(2, 5, 7, generator=generator), dim=-1)
    by_hand = -(soft * logits.log_softmax(-1)).sum(-1)[masked].mean()
    torch.testing.assert_close(masked_cross_entropy(logits, soft, masked), by_hand)


@pytest.mark.slow
def test_weights_store_their_format_and_config(tokenizer, vqmae):
    from safetensors import safe_open

    for path, name in ((tokenizer, "MeshVQVAE"), (vqmae, "VQMAE")):
        with safe_open(path, "pt") as file:
            assert file.metadata()["format"] == name
            json.loads(file.metadata()["config"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_run_is_named_after_its_backbone(backbone):
    config = composed("train_mega", f"backbone={backbone}")
    assert config.output == f"runs/{backbone}"
    built = getattr(BACKBONES[backbone], "func", BACKBONES[backbone])
    assert config.backbone._target_ == f"mega.backbones.{built.__name__}"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_exported_image_model_loads(tmp_path, monkeypatch, dtype):
    """As asked, under the name of its own backbone, which is not the default one."""
    monkeypatch.setattr("mega.training.trainer.load_run_weights", lambda *_: None)  # the run's are the module's own
    path, module = tmp_path / "new" / "cvqmae.safetensors", image_training()
    sizes = (
        "model.dim=32",
        *(f"model.{part}_{name}" for part in ("encoder", "decoder") for name in ("depth=1", "heads=2")),
    )
    options = (f"weights={path}", f"export_dtype={dtype}", "tta=none", "backbone=efficientnet_lite0", *sizes)
    export(composed("train_mega", *options), module)
    tensors, description = read_weights(path, "CVQMAE")
    assert {v.dtype for v in tensors.values() if v.is_floating_point()} == {getattr(torch, dtype)}
    assert (description["backbone"], description["crop"]) == ("efficientnet_lite0", CROP)
    loaded, _ = load_cvqmae(path)
    for name, value in module.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=2e-3, rtol=1e-3)


def test_released_files_are_not_overwritten(tmp_path):
    torch.save({"model": {}}, tmp_path / "released")
    with pytest.raises(ValueError, match="is a released file and is not overwritten"):
        prepare_export(composed("train_mega", f"weights={tmp_path / 'released'}"), image_training())
