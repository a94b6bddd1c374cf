"""Training on images: the masked transformer predicts tokens from an image and the visible tokens (MEGA, CVPR 2025)."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from mega.geometry import mean_distance, procrustes_align, project_weak_perspective, rot6d_to_matrix
from mega.metrics import COCO17, Protocol, keypoint2d_error, mesh_errors
from mega.model import CVQMAE, sample_mask
from mega.sampling import predict_deterministic, select_codes
from mega.training.auxiliary_head import LOSS_WEIGHTS, AuxiliaryHead
from mega.training.optimizer import ParameterGroup, adamw, neighbour_targets, schedule_of, soft_cross_entropy
from mega_common.distributed import draw_rows
from mesh_vq_vae import MeshVQVAE

# Parts of the model that learn from the first step on: the heads of rotation and camera.
_ROTCAM_HEADS = tuple(f"model.decoder.{name}." for name in ("rotcam_head", "rot_predictor", "cam_predictor"))
# Which mesh the keypoint losses look at.
REPROJECTIONS = ("argmax", "expected")


class LossWeights(NamedTuple):
    """Weights of the loss terms. The first three terms are the published ones; the others help a small model.

    tokens: cross-entropy of the masked tokens.
    rotation: mean squared difference of the rotation matrices.
    keypoints2d: mean of |dx| and |dy| of the projected keypoints times their confidence, in crop coordinates.
    points: mean distance of decoded canonical vertices, metres.
    keypoints3d: mean distance of the keypoints in the camera frame, metres: rotation and pose have to agree.
    auxiliary: the two keypoint terms and the losses of the `AuxiliaryHead`; 0 leaves the head out.
    """

    tokens: float = 1.0
    rotation: float = 1.0
    keypoints2d: float = 1.0
    points: float = 0.0
    keypoints3d: float = 0.0
    auxiliary: float = 0.0


class CVQMAETraining(L.LightningModule):
    """Trains and validates CVQMAE on batches of `mega.data.SyntheticImageData`.

    Args:
        model: the image model.
        tokenizer: frozen; decodes the tokens.
        points: (S,) vertices that the loss looks at, those of the batches' "points".
        crop: {"size", "margin", "mean", "std"} of the crops, exported with the weights.
        base_lr, batch_size, schedule, warmup_steps, steps, warmup_epochs: see `schedule_of`.
        weight_decay: AdamW's weight decay.
        weights: of the losses, see `LossWeights`.
        backbone_rate: learning rate of the backbone relative to the rest (published: 1); a pre-trained one needs less.
        all_masked: share of batches in which every token is masked, as in deterministic prediction (published: 0).
        backbone_steps: number of first steps in which only backbone, auxiliary head, rotation and camera learn, and
            the transformer waits; such a step takes a third of the time.
        reprojection: the mesh of the keypoint losses: "argmax" (published) decodes the likeliest code of each masked
            token, with no gradient to the tokens; "expected" decodes the mean code (softmax-weighted), with gradient.
        decoded_every: the losses on meshes use one person in so many, to save time in the tokenizer's decoder.
        label_smoothing_temperature: how far the target of the cross-entropy spreads to neighbouring codes, see
            `neighbour_targets`; 0 is one-hot (published).
        decode: of the validated predictions, exported with the weights: "argmax" (published) decodes the likeliest
            codes, "soft" the mean ones.
        protocol: of the validation errors.
        train_metrics_every: log PVE, MPJPE and PA-MPJPE of the training batch every so many steps, of the mesh that the
            losses use; None for never. Only for data whose training batches hold "vertices".
        channels_last: store the backbone's feature maps channels last, which is faster on some GPUs.
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
        steps: float = -1,
        warmup_epochs: int = 20,
        weight_decay: float = 0.05,
        weights: dict | None = None,
        backbone_rate: float = 1.0,
        all_masked: float = 0.0,
        backbone_steps: int = 0,
        reprojection: str = "argmax",
        decoded_every: int = 1,
        label_smoothing_temperature: float = 0.0,
        decode: str = "argmax",
        protocol: Protocol = COCO17,
        train_metrics_every: int | None = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.model = model
        self._tokenizer = [tokenizer.eval().requires_grad_(False)]  # in a list: not part of this module's state
        self.weights, self.crop, self.decode, self.protocol = LossWeights(**(weights or {})), crop, decode, protocol
        self.all_masked, self.backbone_steps, self.backbone_rate = all_masked, backbone_steps, backbone_rate
        self.reprojection, self.decoded_every, self.train_metrics_every = (
            reprojection,
            decoded_every,
            train_metrics_every,
        )
        self.schedule = {"base_lr": base_lr, "batch_size": batch_size, "schedule": schedule}
        self.schedule |= {"warmup_steps": warmup_steps, "steps": steps, "warmup_epochs": warmup_epochs}
        self.weight_decay = weight_decay
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model.backbone.to(memory_format=self.memory_format)
        targets = neighbour_targets(tokenizer.codebook, label_smoothing_temperature)
        self.register_buffer("targets", targets, persistent=False)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(crop[name]).view(3, 1, 1), persistent=False)
        self.register_buffer("points", points, persistent=False)
        self.auxiliary = None
        if self.weights.auxiliary > 0:
            self.auxiliary = AuxiliaryHead(*_feature_shape(model, crop["size"]), tokenizer)
        elif backbone_steps > 0:
            raise ValueError("backbone_steps need the auxiliary head: give weights.auxiliary a value above 0")
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
        """Images (B, 3, H, W) uint8 -> features (B, C, h, w), in float32: depthwise convolutions gain nothing from
        less."""
        with self._float32():
            normalised = (images.float() / 255 - self.mean) / self.std
            return self.model.features(normalised.contiguous(memory_format=self.memory_format))

    def _float32(self) -> torch.autocast:
        """Reduced precision is for the transformer alone: half a percent of a metre is 5 mm."""
        return torch.autocast(self.device.type, enabled=False)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        masked = None
        if self.global_step >= self.backbone_steps:
            tokens = batch["tokens"]
            masked = draw_rows(lambda n: sample_mask(n, tokens.shape[1]), len(tokens)).to(tokens.device)
            if torch.rand(()) < self.all_masked:
                masked = torch.ones_like(masked)
        return self._loss(self.features(batch["image"]), batch, masked, "train")

    def _loss(self, features: Tensor, batch: dict, masked: Tensor | None, split: str) -> Tensor:
        """The weighted loss of a batch whose tokens are `masked` (B, N); None leaves out the transformer's terms."""
        with self._float32():
            rot6d, cam = self.model.rotcam(features)
            rotation = rot6d_to_matrix(rot6d)
            terms = {"rotation": (rotation - batch["rotmat"]).square().mean()}
            if self.auxiliary is not None:
                terms["auxiliary"] = self._auxiliary_loss(features, rotation, cam, batch, split)
        if masked is not None:
            terms |= self._token_terms(features, rotation, cam, batch, masked, split)
        size = len(batch["rotmat"])
        self.log_dict({f"{split}/{k}": value for k, value in terms.items()}, batch_size=size, sync_dist=True)
        loss = self._weighted(terms)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return sum(getattr(self.weights, name) * value for name, value in terms.items())

    def _auxiliary_loss(self, features: Tensor, rotation: Tensor, cam: Tensor, batch: dict, split: str) -> Tensor:
        predicted = self.auxiliary(features)
        codes = self.tokenizer.vq_vae.lookup(batch["tokens"])
        depth = (batch["keypoints3d"] @ batch["rotmat"].mT)[..., 2]
        losses = self.auxiliary.losses(predicted, codes, batch["keypoints2d"][..., :2], depth)
        reported = {f"{split}/auxiliary_{name}": value for name, value in losses.items()}
        self.log_dict(reported, batch_size=len(codes), sync_dist=True)
        of_keypoints = self._weighted(_keypoint_terms(predicted["keypoints"], rotation, cam, batch))
        return of_keypoints + sum(weight * losses[name] for name, weight in LOSS_WEIGHTS.items())

    def _token_terms(
        self, features: Tensor, rotation: Tensor, cam: Tensor, batch: dict, masked: Tensor, split: str
    ) -> dict[str, Tensor]:
        tokens = batch["tokens"]
        logits = self.model(features, tokens, masked).float()  # (B, N, K)
        with self._float32():
            cross_entropy = soft_cross_entropy(logits, self.targets[tokens], masked)
            some = slice(None, None, self.decoded_every)
            rotation, cam, true = rotation[some], cam[some], {name: values[some] for name, values in batch.items()}
            codes = self._codes(logits[some], tokens[some], masked[some])
            vertices = self.tokenizer.decode_latents(codes)  # (b, V, 3)
            joints = self.tokenizer.keypoint_regressor @ vertices  # (b, 23, 3)
            distance = (vertices[:, self.points] - true["points"]).norm(dim=-1).mean()
            # At the steps that Lightning's loggers write.
            if split == "train" and self.train_metrics_every and (self.global_step + 1) % self.train_metrics_every == 0:
                self._report_training_errors(codes, rotation, true)
            return {"tokens": cross_entropy, "points": distance, **_keypoint_terms(joints, rotation, cam, true)}

    def _codes(self, logits: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
        """Codes (B, N, D) to decode: predicted ones, as `reprojection` says, for masked tokens, elsewhere true ones."""
        if self.reprojection == "argmax":
            return self.tokenizer.vq_vae.lookup(torch.where(masked, logits.argmax(-1), tokens))
        expected = self.tokenizer.expected_codes(logits)
        return torch.where(masked[..., None], expected, self.tokenizer.vq_vae.lookup(tokens))

    @torch.no_grad()
    def _report_training_errors(self, codes: Tensor, rotation: Tensor, true: dict) -> None:
        if "vertices" not in true:
            raise ValueError("training.train_metrics_every needs data whose training batches hold meshes: give null")
        errors = self._mesh_errors(codes, rotation, true)[1]
        reported = {f"train/{name}": errors[name].mean() for name in ("PVE", "MPJPE", "PA-MPJPE")}
        self.log_dict(reported, batch_size=len(codes), sync_dist=True)

    def _mesh_errors(self, codes: Tensor, rotation: Tensor, true: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoded meshes (B, V, 3) in the camera's orientation, and their errors by `protocol`."""
        mesh = self.tokenizer.decode_latents(codes) @ rotation.mT
        truth = true["vertices"] @ true["rotmat"].mT
        return mesh, mesh_errors(mesh, truth, self.tokenizer.keypoint_regressor, self.protocol)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        features = self.features(batch["image"])
        self._report_errors(features, batch)
        # The same masks every time, so that two validations can be compared.
        generator = torch.Generator().manual_seed(batch_idx)
        masked = sample_mask(*batch["tokens"].shape, generator).to(features.device)
        self._loss(features, batch | {"points": batch["vertices"][:, self.points]}, masked, "val")

    def _report_errors(self, features: Tensor, batch: dict) -> None:
        """Log the errors of the deterministic prediction, and of the auxiliary head."""
        prediction = predict_deterministic(self.model, features)
        with self._float32():
            rotation = prediction.rotation
            codes = select_codes(self.tokenizer, prediction, self.decode)
            mesh, errors = self._mesh_errors(codes, rotation, batch)
            on_crop = project_weak_perspective(self.tokenizer.keypoint_regressor @ mesh, prediction.cam)
            keypoints = keypoint2d_error(on_crop, batch["keypoints2d"], self.crop["margin"])
            metrics = {name: values.mean() for name, values in errors.items()}
            metrics["2d_keypoints_percent_of_box"] = 100 * keypoints.nanmean()
            metrics["token_accuracy_percent"] = 100 * (prediction.tokens == batch["tokens"]).float().mean()
            metrics["rotation_degrees"] = _angle(rotation, batch["rotmat"]).mean()
            if self.auxiliary is not None:
                joints = list(self.protocol.joints)
                found, true = self.auxiliary(features)["keypoints"][:, joints], batch["keypoints3d"][:, joints]
                metrics["PA-MPJPE_of_auxiliary"] = mean_distance(procrustes_align(found, true), true).mean()
        for name, value in metrics.items():
            shown = name in ("PVE", "PA-MPJPE", "PA-MPJPE_of_auxiliary")
            self.log(f"val/{name}", value, batch_size=len(mesh), prog_bar=shown, sync_dist=True)

    def configure_optimizers(self) -> dict:
        backbone, transformer, others = [], [], []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith("model.backbone."):
                backbone.append(parameter)
            elif name.startswith("model.") and not name.startswith(_ROTCAM_HEADS):
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


def _feature_shape(model: CVQMAE, size: int) -> tuple[int, tuple[int, int]]:
    """Channels C and grid (h, w) of the backbone's features of a crop."""
    training = model.training
    with torch.no_grad():
        features = model.eval().features(torch.zeros(1, 3, size, size))
    model.train(training)
    return features.shape[1], tuple(features.shape[2:])


def _keypoint_terms(joints: Tensor, rotation: Tensor, cam: Tensor, true: dict) -> dict[str, Tensor]:
    """Two terms of `LossWeights`, of canonical keypoints (B, 23, 3) under rotations (B, 3, 3) and cameras (B, 3)."""
    in_camera = joints @ rotation.mT
    true_in_camera = true["keypoints3d"] @ true["rotmat"].mT
    on_crop = project_weak_perspective(in_camera, cam)  # (B, 23, 2)
    confidence = true["keypoints2d"][..., 2]
    off = (on_crop - true["keypoints2d"][..., :2]).abs().mean(-1) * confidence
    return {"keypoints2d": off.mean(), "keypoints3d": (in_camera - true_in_camera).norm(dim=-1).mean()}


def _angle(predicted: Tensor, true: Tensor) -> Tensor:
    """Degrees (B,) between rotations (B, 3, 3)."""
    cosine = ((predicted * true).sum((1, 2)) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).acos())
