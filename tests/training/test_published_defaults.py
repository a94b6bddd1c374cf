"""The published setups do what the published code does in training."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.helpers.fake_files import composed

# facts.md section 4 (the published code in training) and 2.4, row by row. What is no option is tested where it is done:
# ImageNet weights and stochastic depth with the backbones, crops and 2D units in tests/golden, confidences and EXIF
# with the annotations, the schedule's formula and losses in test_training.py, draws of the mixture in test_mixture.py.
_AUGMENTATION = {"data.augmentation": None, "data.flip_probability": 0.0}
_VALIDATION = {
    "data.val.path": ["datasets/3dpw/3dpw_validation.npz", "datasets/3DPW/3DPW_validation.npz"],
    "data.val.root": ".",
    "data.val_share": 0.01,
    "trainer.check_val_every_n_epoch": 1,
    "monitor": {"loss": "val/loss", "pve": "val/PVE", "pa_mpjpe": "val/PA-MPJPE"},
}
_HEADS = {"model.rotcam_dropout": 0.5, "model.cond_dropout": 0.0}
_RATE = {
    "training.base_lr": 1e-3,  # of 256 rows
    "training.schedule": "published",
    "training.warmup_epochs": 20,
    "training.weight_decay": 0.05,
    "trainer.max_steps": -1,
    "trainer.accumulate_grad_batches": 1,
}
_PLAIN = {"trainer.gradient_clip_val": None, "ema_decay": None, "trainer.precision": "32-true"}
_LOSSES = {
    "training.weights": {
        "tokens": 1.0,
        "rotation": 1.0,
        "keypoints2d": 1.0,
        "points": 0.0,
        "keypoints3d": 0.0,
        "auxiliary": 0.0,
    },
    "training.reprojection": "argmax",
    "training.label_smoothing_temperature": 0.0,
    "training.all_masked": 0.0,
    "training.backbone_steps": 0,
    "training.backbone_rate": 1.0,
    "training.decoded_every": 1,
}
_IMAGE = {**_AUGMENTATION, **_VALIDATION, **_HEADS, **_RATE, **_PLAIN, **_LOSSES, "training.train_metrics_every": 50}
PUBLISHED = {
    f"mega_{backbone}{stage}": {
        **_IMAGE,
        "data.batch_size": 4 if backbone == "resnet" else 16,
        "training.batch_size": 4 if backbone == "resnet" else 16,
        "trainer.max_epochs": 10 if stage else 200,
    }
    for backbone in ("hrnet", "resnet", "vit")
    for stage in ("", "_mixture")
}
for stage in ("", "_mixture"):
    # The ViT's published 2D targets span half the range of the others', and our loss is computed in the whole one.
    weights = _LOSSES["training.weights"] | {"keypoints2d": 0.5}
    PUBLISHED[f"mega_vit{stage}"] |= {"training.weights": weights, "model.cam_range": 1.0, "crop.patch": True}
PUBLISHED["mega_pretrained"] = {
    **_RATE,
    **_PLAIN,
    "data.batch_size": 16,
    "training.batch_size": 16,
    "training.label_smoothing": 0.0,
    "trainer.max_epochs": 500,
    "model.init": "published",
}
PUBLISHED["mesh_vqvae_54"] = {
    **_PLAIN,
    "data.batch_size": 16,
    "training.lr": 5e-5,
    "training.steps": None,
    "training.unquantized_steps": 0,
    "training.edge_weight": 0.0,
    "training.free_shift": True,
    "trainer.max_epochs": 500,
    "trainer.max_steps": -1,
}
SCRIPTS = {"mega_pretrained": "pretrain_mega", "mesh_vqvae_54": "train_mesh_vqvae"}


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "slurm"])
@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_defaults_are_the_published_ones(experiment: str, trainer: str) -> None:
    config = composed(SCRIPTS.get(experiment, "train_mega"), f"experiment={experiment}", f"trainer={trainer}")
    assert {name: OmegaConf.select(config, name) for name in PUBLISHED[experiment]} == PUBLISHED[experiment]


def test_what_the_user_asks_for_wins() -> None:
    options = ("trainer=gpu", "trainer.precision=bf16-mixed", "trainer.max_epochs=3", "data.batch_size=8")
    config = composed("train_mega", "experiment=mega_resnet", *options)
    assert (config.trainer.precision, config.trainer.max_epochs, config.training.batch_size) == ("bf16-mixed", 3, 8)


def test_the_embedded_trainings_keep_their_own() -> None:
    for script in ("train_mega", "pretrain_mega"):
        config = composed(script)
        assert (config.training.schedule, config.model.init) == ("step", "scaled")
        assert config.trainer.gradient_clip_val == 1.0
    config = composed("train_mega")
    assert (config.model.rotcam_dropout, config.training.reprojection) == (0.1, "expected")
    assert config.data.augmentation.scale == 0.15


@pytest.mark.parametrize("experiment", ["mega_hrnet", "mega_resnet_mixture"])
def test_our_improvements_are_one_override(experiment: str) -> None:
    """`+recipe=improved` changes what it names, and nothing else of a published setup."""
    published, improved = (
        OmegaConf.to_container(composed("train_mega", f"experiment={experiment}", *recipe))
        for recipe in ((), ("+recipe=improved",))
    )
    augmentation = improved["data"].pop("augmentation")
    assert augmentation["scale"] == 0.25
    assert len(instantiate(OmegaConf.create({"crop": improved["crop"], "a": augmentation})).a.look) == 7
    assert published["data"].pop("augmentation") is None
    for group, name, value in (
        ("data", "flip_probability", 0.5),
        ("training", "schedule", "step"),
        ("training", "warmup_steps", 0.1),
        ("training", "steps", -1),
        ("training", "reprojection", "expected"),
        ("trainer", "gradient_clip_val", 1.0),
    ):
        assert improved[group].pop(name) == value
        assert published[group].pop(name) != value
    assert (improved.pop("ema_decay"), published.pop("ema_decay")) == (0.9999, None)
    assert improved == published
