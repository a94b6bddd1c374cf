"""Training on images: the masked transformer predicts tokens from an image and the visible tokens (MEGA, CVPR 2025)."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import lightning as L
import roma
import torch
from torch import Tensor, nn

from mega.geometry import mean_distance, procrustes_align, project_weak_perspective, rot6d_to_matrix
from mega.metrics import COCO17, Protocol, keypoint2d_error, mesh_errors
from mega.model import CVQMAE, masked_cross_entropy, sample_mask
from mega.sampling import predict_deterministic, select_codes
from mega.training.vqmae import AdamWConfig, ParameterGroup
from mega_common.distributed import draw_rows, masked_mean
from mesh_vq_vae import MeshVQVAE

# The heads of rotation, camera and auxiliary losses, which learn from the first step on.
_HEADS = ("auxiliary.", "model.decoder.rotcam_head.", "model.decoder.rot_predictor.", "model.decoder.cam_predictor.")
_IN_PROGRESS_BAR = ("loss", "PVE", "PA-MPJPE", "PA-MPJPE_of_auxiliary")


class LossWeights(NamedTuple):
    """Weights of the loss terms. The first three terms are the published ones; the others help a small model."""

    tokens: float = 1.0  # cross-entropy of the masked tokens
    rotation: float = 1.0  # mean squared difference of the rotation matrices
    keypoints2d: float = 1.0  # mean of |dx| and |dy| of projected keypoints times their confidence, crop in [-1, 1]
    points: float = 0.0  # mean distance of decoded canonical vertices, metres
    keypoints3d: float = 0.0  # mean distance of keypoints in the camera frame, metres: rotation and pose have to agree
    auxiliary: float = 0.0  # both keypoint terms and the losses of the `AuxiliaryHead`; 0 leaves the head out


@dataclass(frozen=True, kw_only=True)
class CVQMAETrainingConfig(AdamWConfig):
    """How an image model is trained; the defaults of what is added here are the published ones."""

    weights: dict = field(default_factory=dict)  # of the losses, see `LossWeights`
    backbone_rate: float = 1.0  # the backbone's learning rate relative to the rest; a pre-trained one needs less
    all_masked: float = 0.0  # share of batches in which every token is masked, as in deterministic prediction
    # Number of first steps in which only backbone, auxiliary head, rotation and camera learn, and the transformer
    # waits; such a step takes a third of the time.
    backbone_steps: int = 0
    # The mesh of the keypoint losses: "argmax" decodes the likeliest code of each masked token, with no gradient to the
    # tokens; "expected" decodes the mean code (softmax-weighted), with gradient.
    reprojection: Literal["argmax", "expected"] = "argmax"
    decoded_every: int = 1  # the losses on meshes use one person in so many, to save time in the tokenizer's decoder
    # How far the target of the cross-entropy spreads to neighbouring codes, see `neighbour_targets`; 0 is one-hot.
    label_smoothing_temperature: float = 0.0
    # Of validated predictions, exported with the weights: the likeliest codes are decoded, or the mean ones ("soft").
    decode: Literal["argmax", "soft"] = "argmax"
    # Log the errors of the training batch every so many steps, of the mesh that the losses use; None for never. Only
    # for data whose training batches hold "vertices".
    train_metrics_every: int | None = None
    channels_last: bool = False  # store the backbone's feature maps channels last, which is faster on some GPUs


class CVQMAETraining(L.LightningModule):
    """Trains and validates CVQMAE on batches of `mega.data.SyntheticImageData`.

    Args:
        model: the image model.
        config: losses and optimizer.
        tokenizer: frozen; decodes the tokens.
        points: (S,) vertices that the loss looks at, those of the batches' "points".
        crop: {"size", "margin", "mean", "std"} of the crops, exported with the weights.
        protocol: how the validation errors are measured.
    """

    def __init__(
        self,
        model: CVQMAE,
        config: CVQMAETrainingConfig,
        tokenizer: MeshVQVAE,
        points: Tensor,
        crop: dict,
        protocol: Protocol = COCO17,
    ):
        super().__init__()
        self.model, self.config, self.crop, self.protocol = model, config, crop, protocol
        self._tokenizer = [tokenizer.eval().requires_grad_(False)]  # in a list: not part of this module's state
        self.weights = LossWeights(**config.weights)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.backbone.to(memory_format=memory_format)  # feature maps follow the weights
        targets = neighbour_targets(tokenizer.codebook, config.label_smoothing_temperature)
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("points", points, persistent=False)
        self.auxiliary = None
        if self.weights.auxiliary > 0:
            with torch.no_grad():
                features = model.eval().features(torch.zeros(1, 3, crop["size"], crop["size"]))
            model.train()
            self.auxiliary = AuxiliaryHead(features.shape[1], features.shape[2:], tokenizer)
        elif config.backbone_steps > 0:
            raise ValueError("backbone_steps need the auxiliary head: give weights.auxiliary a value above 0")
        if config.reprojection == "argmax" and self.weights.points > 0:
            raise ValueError("training.weights.points needs training.reprojection=expected: argmax has no gradient")

    @property
    def tokenizer(self) -> MeshVQVAE:
        return self._tokenizer[0].to(self.device)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 -> features (B, C, h, w), in float32: depthwise convolutions gain nothing from
        less."""
        with self._float32():
            return self.model.features(images)

    def _float32(self) -> torch.autocast:
        """Reduced precision is for the transformer alone: half a percent of a metre is 5 mm."""
        return torch.autocast(self.device.type, enabled=False)

    def _log(self, split: str, values: dict[str, Tensor], batch_size: int) -> None:
        for name, value in values.items():
            shown = name in _IN_PROGRESS_BAR
            self.log(f"{split}/{name}", value, prog_bar=shown, batch_size=batch_size, sync_dist=True)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        masked = None
        if self.global_step >= self.config.backbone_steps:
            tokens = batch["tokens"]
            masked = draw_rows(lambda n: sample_mask(n, tokens.shape[1]), len(tokens)).to(tokens.device)
            if torch.rand(()) < self.config.all_masked:
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
        loss = self._weighted(terms)
        self._log(split, terms | {"loss": loss}, len(features))
        return loss

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return sum(getattr(self.weights, name) * value for name, value in terms.items())

    def _auxiliary_loss(self, features: Tensor, rotation: Tensor, cam: Tensor, batch: dict, split: str) -> Tensor:
        predicted = self.auxiliary(features)
        losses = self.auxiliary.losses(
            predicted,
            codes=self.tokenizer.vq_vae.lookup(batch["tokens"]),
            on_crop=batch["keypoints2d"][..., :2],
            depth=(batch["keypoints3d"] @ batch["rotmat"].mT)[..., 2],
        )
        self._log(split, {f"auxiliary_{name}": value for name, value in losses.items()}, len(features))
        of_keypoints = self._weighted(_keypoint_terms(predicted["keypoints"], rotation, cam, batch))
        return of_keypoints + sum(weight * losses[name] for name, weight in self.auxiliary.weights.items())

    def _token_terms(
        self, features: Tensor, rotation: Tensor, cam: Tensor, batch: dict, masked: Tensor, split: str
    ) -> dict[str, Tensor]:
        tokens = batch["tokens"]
        logits = self.model(features, tokens, masked).float()  # (B, N, K)
        with self._float32():
            cross_entropy = masked_cross_entropy(logits, self.targets[tokens], masked)
            some = slice(None, None, self.config.decoded_every)
            rotation, cam, true = rotation[some], cam[some], {name: values[some] for name, values in batch.items()}
            codes = self._codes(logits[some], tokens[some], masked[some])
            vertices = self.tokenizer.decode_latents(codes)  # (b, V, 3)
            joints = self.tokenizer.keypoint_regressor @ vertices  # (b, 23, 3)
            distance = (vertices[:, self.points] - true["points"]).norm(dim=-1).mean()
            every = self.config.train_metrics_every
            if split == "train" and every and (self.global_step + 1) % every == 0:  # the steps that loggers write
                if "vertices" not in true:
                    raise ValueError(
                        "training.train_metrics_every needs data whose training batches hold meshes: give null"
                    )
                with torch.no_grad():
                    self._log(split, self._mesh_errors(codes, rotation, true)[1], len(codes))
            return {"tokens": cross_entropy, "points": distance, **_keypoint_terms(joints, rotation, cam, true)}

    def _codes(self, logits: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
        """Codes (B, N, D) to decode: predicted ones, as `reprojection` says, for masked tokens, elsewhere true ones."""
        if self.config.reprojection == "argmax":
            return self.tokenizer.vq_vae.lookup(torch.where(masked, logits.argmax(-1), tokens))
        expected = self.tokenizer.expected_codes(logits)
        return torch.where(masked[..., None], expected, self.tokenizer.vq_vae.lookup(tokens))

    def _mesh_errors(self, codes: Tensor, rotation: Tensor, true: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoded meshes (B, V, 3) in the camera's orientation, and their mean errors by `protocol`."""
        mesh = self.tokenizer.decode_latents(codes) @ rotation.mT
        truth = true["vertices"] @ true["rotmat"].mT
        errors = mesh_errors(mesh, truth, self.tokenizer.keypoint_regressor, self.protocol)
        return mesh, {name: values.mean() for name, values in errors.items()}

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the errors of the deterministic prediction, and the loss of training."""
        features = self.features(batch["image"])
        prediction = predict_deterministic(self.model, features)
        rotation = prediction.rotation
        with self._float32():
            codes = select_codes(self.tokenizer, prediction, self.config.decode)
            mesh, metrics = self._mesh_errors(codes, rotation, batch)
            on_crop = project_weak_perspective(self.tokenizer.keypoint_regressor @ mesh, prediction.cam)
            keypoints = keypoint2d_error(on_crop, batch["keypoints2d"], self.crop["margin"])
            metrics["2d_keypoints_percent_of_box"] = 100 * keypoints.nanmean()
            metrics["token_accuracy_percent"] = 100 * (prediction.tokens == batch["tokens"]).float().mean()
            metrics["rotation_degrees"] = roma.rotmat_geodesic_distance(rotation, batch["rotmat"]).rad2deg().mean()
            if self.auxiliary is not None:
                joints = list(self.protocol.joints)
                found, true = self.auxiliary(features)["keypoints"][:, joints], batch["keypoints3d"][:, joints]
                metrics["PA-MPJPE_of_auxiliary"] = mean_distance(procrustes_align(found, true), true).mean()
        self._log("val", metrics, len(mesh))
        # The same masks every time, so that two validations can be compared.
        generator = torch.Generator().manual_seed(batch_idx)
        masked = sample_mask(*batch["tokens"].shape, generator).to(features.device)
        self._loss(features, batch | {"points": batch["vertices"][:, self.points]}, masked, "val")

    def configure_optimizers(self) -> dict:
        backbone = ParameterGroup([], rate=self.config.backbone_rate)
        heads = ParameterGroup([])
        transformer = ParameterGroup([], start=self.config.backbone_steps)
        for name, parameter in self.named_parameters():
            group = backbone if name.startswith("model.backbone.") else transformer
            group = heads if name.startswith(_HEADS) else group
            if parameter.requires_grad:
                group.parameters.append(parameter)
        return self.config.optimizer(self.trainer, [backbone, heads, transformer])


def _keypoint_terms(joints: Tensor, rotation: Tensor, cam: Tensor, true: dict) -> dict[str, Tensor]:
    """Two terms of `LossWeights`, of canonical keypoints (B, 23, 3) under rotations (B, 3, 3) and cameras (B, 3)."""
    in_camera = joints @ rotation.mT
    true_in_camera = true["keypoints3d"] @ true["rotmat"].mT
    on_crop = project_weak_perspective(in_camera, cam)  # (B, 23, 2)
    confidence = true["keypoints2d"][..., 2]
    off = (on_crop - true["keypoints2d"][..., :2]).abs().mean(-1) * confidence
    return {"keypoints2d": off.mean(), "keypoints3d": (in_camera - true_in_camera).norm(dim=-1).mean()}


def neighbour_targets(codebook: Tensor, label_smoothing_temperature: float) -> Tensor:
    """Target distributions (K, K) of the cross-entropy: row i spreads from code i to codes close to it.

    Row i is softmax_j(-|e_i - e_j|² / (temperature * s)) with s the mean squared distance to a nearest neighbour;
    temperature 0 gives the one-hot targets of the published loss.
    """
    if label_smoothing_temperature == 0:
        return torch.eye(len(codebook), device=codebook.device)
    distances = torch.cdist(codebook, codebook).square()
    nearest = distances.clone().fill_diagonal_(torch.inf).amin(1)
    return torch.softmax(-distances / (label_smoothing_temperature * nearest.mean()), dim=1)


class AuxiliaryHead(nn.Module):
    """Predicts keypoints and token codes directly from the image features, without the transformer.

    The published backbones are pre-trained on keypoints of real images. A backbone from ImageNet gets only a weak
    gradient through the masked transformer; this head gives it a direct one. It is not part of the exported model.

    Args:
        channels, grid: C and (h, w) of the features.
        tokenizer: its codes are the target; its template is the starting point of the canonical keypoints.

    Source of the heatmaps: Sun et al., Integral Human Pose Regression, ECCV 2018.
    """

    upsampling = 4  # cells of a keypoint's heatmap along either side of one feature cell
    heatmap_std = 0.08  # of the Gaussian target, in crop coordinates
    # They bring each loss to the order of one at the start of a training.
    weights = {"codes": 1.0, "heatmaps": 0.3, "position": 3.0, "depth": 5.0}

    def __init__(self, channels: int, grid: tuple[int, int], tokenizer: MeshVQVAE):
        super().__init__()
        regressor, codebook = tokenizer.keypoint_regressor, tokenizer.codebook.detach()
        self.n_keypoints, self.n_tokens = len(regressor), tokenizer.n_tokens
        self.maps = nn.Conv2d(channels, 2 * self.n_keypoints * self.upsampling**2, 1)
        per_cell = nn.Sequential(nn.Linear(channels, 128), nn.GELU())
        self.trunk = nn.Sequential(per_cell, nn.Flatten(), nn.Linear(grid[0] * grid[1] * 128, 512), nn.GELU())
        self.keypoints = nn.Linear(512, 3 * self.n_keypoints)
        self.codes = nn.Linear(512, self.n_tokens * tokenizer.latent_dim)
        self.register_buffer("template", regressor @ tokenizer.template, persistent=False)
        self.register_buffer("mean", codebook.mean(0), persistent=False)
        self.register_buffer("std", codebook.std(0), persistent=False)
        height, width = (self.upsampling * n for n in grid)
        y, x = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))  # centres of cells
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        self.register_buffer("cells", cells.flatten(0, 1), persistent=False)  # (cells, 2) in [-1, 1]

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, C, h, w) -> keypoints (B, J, 3) canonical, metres; codes (B, N, D); heatmaps (B, J, cells),
        logits of each keypoint's position on the crop; depth (B, J), metres from the body's centre.
        """
        x = self.trunk(features.flatten(2).transpose(1, 2))  # (B, 512)
        maps = nn.functional.pixel_shuffle(self.maps(features), self.upsampling)  # (B, 2J, 4h, 4w)
        heatmaps, depth = maps.flatten(2).chunk(2, dim=1)  # (B, J, cells) each
        return {
            "keypoints": self.template + 0.1 * self.keypoints(x).unflatten(1, (self.n_keypoints, 3)),
            "codes": self.mean + self.std * self.codes(x).unflatten(1, (self.n_tokens, -1)),
            "heatmaps": heatmaps,
            "depth": (heatmaps.softmax(-1) * depth).sum(-1),
        }

    def losses(self, predicted: dict[str, Tensor], codes: Tensor, on_crop: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """Losses of what `forward` returns.

        Args:
            codes: (B, N, D), the true ones.
            on_crop: (B, J, 2), true keypoints in crop coordinates; those outside [-1, 1] are left out.
            depth: (B, J) metres.

        Returns:
            codes: mean squared error, in variances of the codebook.
            heatmaps: cross-entropy against a Gaussian at the true position.
            position: mean distance from the heatmaps' centres of mass to it, in crop coordinates.
            depth: mean absolute error, metres.
        """
        inside = (on_crop.abs() < 1).all(-1)  # (B, J)
        squared = (self.cells - on_crop[:, :, None]).square().sum(-1)  # (B, J, cells)
        target = torch.softmax(-squared / (2 * self.heatmap_std**2), dim=-1)
        heatmaps = predicted["heatmaps"]
        return {
            "codes": ((predicted["codes"] - codes) / self.std).square().mean(),
            "heatmaps": masked_mean(-(target * heatmaps.log_softmax(-1)).sum(-1), inside),
            "position": masked_mean((heatmaps.softmax(-1) @ self.cells - on_crop).norm(dim=-1), inside),
            "depth": masked_mean((predicted["depth"] - depth).abs(), inside),
        }
