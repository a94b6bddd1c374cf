"""Training on pictures: the masked transformer fills in tokens given what the picture shows (MEGA, CVPR 2025).

The modes of train_mega.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mega.backbones import TRAINING_ONLY, start_backbone
from mega.checkpoints import load_cvqmae, load_into, read_state, save_model
from mega.config import build
from mega.geometry import mean_distance, procrustes_align, project_weak_perspective, rot6d_to_matrix
from mega.metrics import COCO17, PROTOCOLS, Protocol, keypoint2d_error, mesh_errors
from mega.model import CVQMAE, load_pretrained_vqmae, sample_mask
from mega.sampling import Prediction, predict_deterministic, sample, select_codes
from mega.test_time_augmentation import check_tta
from mega.tokenizer import load_tokenizer
from mega.training.auxiliary_head import Readout
from mega.training.callbacks import PicturePanels
from mega.training.checkpoints import find_checkpoint
from mega.training.optimizer import ParameterGroup, adamw, neighbour_targets, schedule_of, soft_cross_entropy
from mega.training.trainer import begin, checkpoint_folder, export_dtype, fit, load_run_weights, model_arguments, test
from mega_common.distributed import draw_rows
from mega_common.weights_io import is_released, load_strictly, weights_format
from mesh_vq_vae import MeshVQVAE

# The heads of the model that learn from the first step on: rotation and camera.
_READ_OFF_FEATURES = tuple(f"model.decoder.{name}." for name in ("rotcam_head", "rot_predictor", "cam_predictor"))
# Of the readout's own losses; they bring each to the order of one at first.
_READOUT_WEIGHTS = {"codes": 1.0, "heat": 0.3, "place": 3.0, "depth": 5.0}
# Codes of the mesh that the keypoint losses look at.
REPROJECTIONS = ("argmax", "expected")


class LossWeights(NamedTuple):
    """Weights of the terms. The first three are the published ones, the others help a small model.

    tokens: cross-entropy of the hidden tokens.
    rotation: mean squared difference of the rotation matrices.
    keypoints2d: mean of |dx| and |dy| of the projected keypoints, times their confidence, in crop coordinates.
    points: mean distance, in metres, of decoded canonical vertices.
    keypoints3d: mean distance, in metres, of the keypoints in the camera frame, so that rotation and pose agree.
    readout: the two keypoint terms and the losses of the `Readout`; 0 leaves it out.
    """

    tokens: float = 1.0
    rotation: float = 1.0
    keypoints2d: float = 1.0
    points: float = 0.0
    keypoints3d: float = 0.0
    readout: float = 0.0


class CVQMAETraining(L.LightningModule):
    """Trains and measures CVQMAE on batches of `mega.data.ImageData`.

    Args:
        model: the image model.
        tokenizer: frozen; decodes.
        points: (S,) vertices that the loss looks at, those of the batches' "points".
        crop: {"size", "margin", "mean", "std"} of the pictures, stored with the weights.
        base_lr, batch_size, schedule, warmup_steps, steps, warmup_epochs: see `schedule_of`.
        weight_decay: of the optimizer.
        weights: of the losses, see `LossWeights`.
        backbone_rate: learning rate of the backbone in those of the rest (published: 1): what is pre-trained is soon
            spoilt.
        all_hidden: share of batches in which every token is hidden, as in deterministic prediction (published: 0).
        backbone_steps: in so many steps at first the readout alone teaches the backbone, rotation and camera, and the
            transformer waits: such a step costs a third of a whole one.
        reprojection: how the mesh of the keypoint losses is decoded: "argmax" (published) from the likeliest code at
            each hidden place, with no gradient to the tokens; "expected" from the mean code (softmax-weighted), with
            one.
        decoded_every: the terms that look at meshes look at one person in so many, whom the tokenizer decodes.
        softness: how far the target of the cross-entropy spreads to neighbouring codes, as a multiple of the squared
            distance to the nearest one; 0 is one-hot (published).
        decode: how deterministic predictions are measured: "argmax" (published) decodes the likeliest codes, "soft" the
            mean ones; stored with the weights.
        protocol: of the errors in validation and test, on the keypoints of the batches.
        n_samples: hypotheses in stochastic evaluation, drawn in 5 steps at temperature 1.
        train_metrics_every: log PVE, MPJPE and PA-MPJPE of the training batch every so many steps, of the mesh that the
            losses look at; None for never. Only for data whose training batches hold "vertices".
        sampled_people: how many people of the test split are evaluated stochastically, which takes long.
        channels_last: let the backbone keep its maps pixel by pixel, which is faster on some GPUs.
    """

    def __init__(
        self,
        model: CVQMAE,
        tokenizer: MeshVQVAE,
        points: Tensor,
        crop: dict,
        base_lr: float,
        batch_size: int,
        schedule: str = "step",
        warmup_steps: float = 0,
        steps: int = -1,
        warmup_epochs: int = 20,
        weight_decay: float = 0.05,
        weights: dict | None = None,
        backbone_rate: float = 1.0,
        all_hidden: float = 0.0,
        backbone_steps: int = 0,
        reprojection: str = "argmax",
        decoded_every: int = 1,
        softness: float = 0.0,
        decode: str = "argmax",
        protocol: Protocol = COCO17,
        n_samples: int = 25,
        sampled_people: int = 200,
        train_metrics_every: int | None = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.model = model
        # Not a part of this module's state: it is frozen and has a file of its own.
        self._tokenizer = [tokenizer.eval().requires_grad_(False)]
        self.weights = LossWeights(**(weights or {}))
        self.crop, self.all_hidden, self.backbone_steps, self.decoded_every = (
            crop,
            all_hidden,
            backbone_steps,
            decoded_every,
        )
        self.decode, self.protocol = decode, protocol
        self.n_samples, self.sampled_people, self.backbone_rate = n_samples, sampled_people, backbone_rate
        self.schedule = {"base_lr": base_lr, "batch_size": batch_size, "schedule": schedule}
        self.schedule |= {"warmup_steps": warmup_steps, "steps": steps, "warmup_epochs": warmup_epochs}
        self.weight_decay, self.reprojection, self.train_metrics_every = weight_decay, reprojection, train_metrics_every
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model.backbone.to(memory_format=self.memory_format)
        self.register_buffer("targets", neighbour_targets(tokenizer.codebook, softness), persistent=False)
        self.register_buffer("points", points, persistent=False)
        self.readout = None
        if self.weights.readout > 0:
            self.readout = Readout(*_features_of_a_crop(model, crop["size"]), tokenizer)
        elif backbone_steps > 0:
            raise ValueError("backbone_steps need the readout: give weights.readout a value above 0")
        if reprojection not in REPROJECTIONS:
            raise ValueError(
                f"training.reprojection={reprojection} is not known; choose from {', '.join(REPROJECTIONS)}"
            )
        if reprojection == "argmax" and self.weights.points > 0:
            raise ValueError("training.weights.points needs training.reprojection=expected: argmax has no gradient")

    @property
    def tokenizer(self) -> MeshVQVAE:
        return self._tokenizer[0].to(self.device)

    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 -> features (B, C, h, w). The backbone stays in float32: depthwise convolutions
        gain nothing from less."""
        with self._exact():
            return self.model.features(images.contiguous(memory_format=self.memory_format))

    def _exact(self) -> torch.autocast:
        """Reduced precision is for the transformer alone: half a percent of a metre is 5 mm."""
        return torch.autocast(self.device.type, enabled=False)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        hidden = None
        if self.global_step >= self.backbone_steps:
            tokens = batch["tokens"]
            hidden = draw_rows(lambda n: sample_mask(n, tokens.shape[1]), len(tokens)).to(tokens.device)
            if torch.rand(()) < self.all_hidden:
                hidden = torch.ones_like(hidden)
        return self._loss(self.features(batch["image"]), batch, hidden, "train")

    def _loss(self, features: Tensor, batch: dict, hidden: Tensor | None, split: str) -> Tensor:
        """The weighted loss of a batch with `hidden` tokens (B, N); with None the transformer's terms are left out."""
        with self._exact():
            rot6d, cam = self.model.rotcam(features)
            rotation = rot6d_to_matrix(rot6d)
            terms = {"rotation": (rotation - batch["rotmat"]).square().mean()}
            if self.readout is not None:
                terms["readout"] = self._readout_loss(features, rotation, cam, batch, split)
        if hidden is not None:
            terms |= self._token_terms(features, rotation, cam, batch, hidden, split)
        size = len(batch["rotmat"])
        self.log_dict({f"{split}/{k}": value for k, value in terms.items()}, batch_size=size, sync_dist=True)
        loss = self._weighted(terms)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return sum(getattr(self.weights, name) * value for name, value in terms.items())

    def _readout_loss(self, features: Tensor, rotation: Tensor, cam: Tensor, batch: dict, split: str) -> Tensor:
        reading = self.readout(features)
        codes = self.tokenizer.vq_vae.lookup(batch["tokens"])
        depth = (batch["keypoints3d"] @ batch["rotmat"].transpose(1, 2))[..., 2]
        losses = self.readout.losses(reading, codes, batch["keypoints2d"][..., :2], depth)
        reported = {f"{split}/readout_{name}": value for name, value in losses.items()}
        self.log_dict(reported, batch_size=len(codes), sync_dist=True)
        in_keypoints = self._weighted(_keypoint_terms(reading.keypoints, rotation, cam, batch))
        return in_keypoints + sum(weight * losses[name] for name, weight in _READOUT_WEIGHTS.items())

    def _token_terms(
        self, features: Tensor, rotation: Tensor, cam: Tensor, batch: dict, hidden: Tensor, split: str
    ) -> dict[str, Tensor]:
        tokens = batch["tokens"]
        logits = self.model(features, tokens, hidden).float()  # (B, N, K)
        with self._exact():
            cross_entropy = soft_cross_entropy(logits, self.targets[tokens], hidden)
            some = slice(None, None, self.decoded_every)
            rotation, cam, true = rotation[some], cam[some], {name: values[some] for name, values in batch.items()}
            codes = self._codes(logits[some], tokens[some], hidden[some])
            points, joints = self.tokenizer.decode_sparsely(codes, self.points)  # (b, S, 3), (b, 23, 3)
            distance = (points - true["points"]).norm(dim=-1).mean()
            # At the steps that Lightning's loggers write.
            if split == "train" and self.train_metrics_every and (self.global_step + 1) % self.train_metrics_every == 0:
                self._report_training_errors(codes, rotation, true)
            return {"tokens": cross_entropy, "points": distance, **_keypoint_terms(joints, rotation, cam, true)}

    def _codes(self, logits: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Codes (B, N, D) to decode: where a token is hidden, what `reprojection` says; elsewhere the true ones."""
        if self.reprojection == "argmax":
            return self.tokenizer.vq_vae.lookup(torch.where(hidden, logits.argmax(-1), tokens))
        expected = self.tokenizer.expected_codes(logits)
        return torch.where(hidden[..., None], expected, self.tokenizer.vq_vae.lookup(tokens))

    @torch.no_grad()
    def _report_training_errors(self, codes: Tensor, rotation: Tensor, true: dict) -> None:
        if "vertices" not in true:
            raise ValueError("training.train_metrics_every needs data whose training batches hold meshes: give null")
        mesh = self.tokenizer.decode_latents(codes) @ rotation.transpose(1, 2)
        truth = true["vertices"] @ true["rotmat"].transpose(1, 2)
        errors = mesh_errors(mesh, truth, self.tokenizer.keypoint_regressor, self.protocol)
        reported = {f"train/{name}": errors[name].mean() for name in ("PVE", "MPJPE", "PA-MPJPE")}
        self.log_dict(reported, batch_size=len(mesh), sync_dist=True)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        features = self._measure(batch, "val")
        # The same masks every time, so that two validations can be compared.
        generator = torch.Generator().manual_seed(batch_idx)
        hidden = sample_mask(*batch["tokens"].shape, generator).to(features.device)
        self._loss(features, batch | {"points": batch["vertices"][:, self.points]}, hidden, "val")
        if self.readout is not None:
            with self._exact():
                joints, true = (
                    x[:, list(self.protocol.joints)] for x in (self.readout(features).keypoints, batch["keypoints3d"])
                )
                error = mean_distance(procrustes_align(joints, true), true).mean()
            self.log("val/PA-MPJPE_of_readout", error, batch_size=len(true), prog_bar=True, sync_dist=True)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        features = self._measure(batch, "test")
        n_sampled = int((batch["index"] < self.sampled_people).sum())  # rows come in ascending order
        if n_sampled > 0:
            self._measure_samples({k: v[:n_sampled] for k, v in batch.items()}, features[:n_sampled], batch_idx)

    def _measure(self, batch: dict, split: str) -> Tensor:
        features = self.features(batch["image"])
        prediction = predict_deterministic(self.model, features)
        with self._exact():
            self._report(batch, prediction, split)
        return features

    def _report(self, batch: dict, prediction: Prediction, split: str) -> None:
        rotation = prediction.rotation
        truth = batch["vertices"] @ batch["rotmat"].transpose(1, 2)
        codes = select_codes(self.tokenizer, prediction, self.decode)
        mesh = self.tokenizer.decode_latents(codes) @ rotation.transpose(1, 2)
        errors = mesh_errors(mesh, truth, self.tokenizer.keypoint_regressor, self.protocol)
        accuracy = (prediction.tokens == batch["tokens"]).float().mean()
        joints = self.tokenizer.keypoint_regressor @ mesh
        on_crop = project_weak_perspective(joints, prediction.cam)
        keypoints = keypoint2d_error(on_crop, batch["keypoints2d"], self.crop["margin"])
        reported = {name: values.mean() for name, values in errors.items()}
        reported["2d_keypoints_percent_of_box"] = 100 * keypoints.nanmean()
        reported["token_accuracy_percent"] = 100 * accuracy
        reported["rotation_degrees"] = _angle(rotation, batch["rotmat"]).mean()
        for name, value in reported.items():
            shown = name in ("PVE", "PA-MPJPE")
            self.log(f"{split}/{name}", value, batch_size=len(truth), prog_bar=shown, sync_dist=True)

    def _measure_samples(self, batch: dict, features: Tensor, batch_idx: int) -> None:
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        tokens = sample(self.model, features, self.n_samples, generator=generator)  # (B, Q, N)
        rot6d, _ = self.model.rotcam(features)
        with self._exact():
            rotation = rot6d_to_matrix(rot6d.float())
            truth = batch["vertices"] @ batch["rotmat"].transpose(1, 2)
            errors = []
            for samples in tokens.unbind(1):  # one by one: 25 meshes of each person at once take gigabytes
                mesh = self.tokenizer.decode(samples) @ rotation.transpose(1, 2)
                errors.append(mesh_errors(mesh, truth, self.tokenizer.keypoint_regressor, self.protocol))
            for name in errors[0]:
                values = torch.stack([e[name] for e in errors], 1)  # (B, Q)
                kinds = {"one_sample": values[:, 0], f"best_of_{self.n_samples}": values.amin(1)}
                reported = {f"test/{name}_{kind}": errors.mean() for kind, errors in kinds.items()}
                self.log_dict(reported, batch_size=len(truth), sync_dist=True)

    def configure_optimizers(self) -> dict:
        backbone, transformer, others = [], [], []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith("model.backbone."):
                backbone.append(parameter)
            elif name.startswith("model.") and not name.startswith(_READ_OFF_FEATURES):
                transformer.append(parameter)
            else:
                others.append(parameter)
        groups = [
            ParameterGroup(backbone, rate=self.backbone_rate),
            ParameterGroup(others),
            ParameterGroup(transformer, start=self.backbone_steps),
        ]
        schedule = schedule_of(self.trainer, **self.schedule)
        return adamw(groups, **schedule, weight_decay=self.weight_decay)


def _features_of_a_crop(model: CVQMAE, size: int) -> tuple[int, tuple[int, int]]:
    """Channels C and grid (h, w) of what the backbone makes of a crop."""
    training = model.training
    with torch.no_grad():
        features = model.eval().features(torch.zeros(1, 3, size, size))
    model.train(training)
    return features.shape[1], tuple(features.shape[2:])


def _keypoint_terms(joints: Tensor, rotation: Tensor, cam: Tensor, true: dict) -> dict[str, Tensor]:
    """Two terms of `LossWeights`, of canonical keypoints (B, 23, 3) under rotations (B, 3, 3) and cameras (B, 3)."""
    in_camera = joints @ rotation.transpose(1, 2)
    true_in_camera = true["keypoints3d"] @ true["rotmat"].transpose(1, 2)
    on_crop = project_weak_perspective(in_camera, cam)  # (B, 23, 2)
    x, y, visible = true["keypoints2d"].unbind(-1)
    off = (on_crop - torch.stack([x, y], -1)).abs().mean(-1) * visible
    return {"keypoints2d": off.mean(), "keypoints3d": (in_camera - true_in_camera).norm(dim=-1).mean()}


def _angle(predicted: Tensor, true: Tensor) -> Tensor:
    """Degrees (B,) between rotations (B, 3, 3)."""
    cosine = ((predicted * true).sum((1, 2)) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


def run_image_training(config: DictConfig) -> None:
    """mode=train fits (and continues), mode=test measures `weights`, mode=export writes `weights` from the run."""
    begin(config)
    body = build(config.body)
    tokenizer = load_tokenizer(config.tokenizer_weights, partial(instantiate(config.tokenizer), body=body))
    model, crop = _model_to_test(config, tokenizer) if config.mode == "test" else _new_model(config, tokenizer)
    if config.mode == "train" and find_checkpoint(checkpoint_folder(config.output)) is None:
        _start_from_trained(config, model)
    if tokenizer.n_vertices != len(body.template):
        raise ValueError(
            f"{config.tokenizer_weights} is for meshes of {tokenizer.n_vertices} vertices, "
            f"but the body {body.name} has {len(body.template)}."
        )
    points = torch.linspace(0, tokenizer.n_vertices - 1, config.loss_points).long()
    cut = {"crop_size": crop["size"], "margin": crop["margin"], "patch": crop.get("patch", False)}
    data = instantiate(config.data)(body=body, tokenizer=tokenizer, points=points, **cut)
    # Losses and errors look at the keypoints that the pictures are annotated with.
    tokenizer.keypoint_regressor = data.keypoint_regressor
    parts = {"model": model, "tokenizer": tokenizer, "points": points, "crop": crop}
    module: CVQMAETraining = instantiate(config.training)(**parts, protocol=PROTOCOLS[config.protocol])
    match config.mode:
        case "test":
            test(config, module, data)
        case "export":
            _export(config, module)
        case "train":
            fit(config, module, data, callbacks=[PicturePanels(Path(config.output) / "panels")])


def _new_model(config: DictConfig, tokenizer: MeshVQVAE) -> tuple[CVQMAE, dict]:
    """The model that the config describes, and how its crops are prepared."""
    model = instantiate(config.model, n_tokens=tokenizer.n_tokens, codebook_size=tokenizer.codebook_size)
    normalisation = {"mean": list(model.backbone.mean), "std": list(model.backbone.std)}
    return model, OmegaConf.to_container(config.crop) | normalisation


def _model_to_test(config: DictConfig, tokenizer: MeshVQVAE) -> tuple[CVQMAE, dict]:
    """The model in `weights`: a file of ours says itself what it is, a released one is what the config says."""
    if weights_format(config.weights) is not None:
        model, description = load_cvqmae(config.weights)
        return model, description["crop"]
    model, crop = _new_model(config, tokenizer)
    return load_into(model, config.weights), crop


def _start_from_trained(config: DictConfig, model: CVQMAE) -> None:
    """What a new run starts from: a whole image model, or a backbone and a VQMAE, each trained or not."""
    state = {}
    if config.pretrained:
        kind = "CVQMAE" if weights_format(config.pretrained) == "CVQMAE" else "VQMAE"
        state = read_state(config.pretrained, kind, model.state_dict())
    if any(key.startswith("backbone.") for key in state):
        load_strictly(model, state, config.pretrained)
        return
    start_backbone(model.backbone, config.backbone_weights)
    if state:
        load_pretrained_vqmae(model, state)


def _export(config: DictConfig, module: CVQMAETraining) -> None:
    if is_released(config.weights):
        raise ValueError(
            f"{config.weights} is a released file and is not overwritten: say where to write, weights=FILE."
        )
    check_tta(config.tta, module.tokenizer)
    load_run_weights(module, config.output, config.export_from)
    model = module.model
    description = {
        "model": model_arguments(config.model, module.tokenizer) | {"cond_dim": model.backbone.out_channels},
        "backbone": config.backbone_name,
        "backbone_args": {k: v for k, v in config.backbone.items() if k not in ("_target_", *TRAINING_ONLY)},
        "crop": module.crop,
        "decode": module.decode,
        "tta": str(config.tta),
    }
    save_model(model, config.weights, description, dtype=export_dtype(config))
    print(f"wrote {config.weights}")
