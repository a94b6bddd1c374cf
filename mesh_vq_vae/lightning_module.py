"""Lightning module that trains MeshVQVAE on batches of canonical meshes {"vertices": (B, V, 3)}."""

from __future__ import annotations

import math

import lightning as L
import torch
from torch import Tensor

from mesh_vq_vae.mesh_ops import aligned_vertex_error, edge_error, unique_edges, vertex_distances
from mesh_vq_vae.model import MeshVQVAE
from mesh_vq_vae.quantizer import perplexity

MM = 1000.0  # millimetres in a metre


class MeshVQVAETraining(L.LightningModule):
    """Mean vertex distance + commitment, with a warm-up of the bottleneck and a cosine decay of the learning rate.

    Args:
        tokenizer: the model.
        lr: peak learning rate of Adam. The published 5e-5 needs 500 epochs; a small network on two cores needs 2e-3.
        steps: length of the cosine decay; None for a constant rate (published).
        final_lr: the rate at the end of the decay, as a share of `lr`.
        unquantized_steps: number of first steps in which latents are not quantized, so that the codebook then starts
            from trained latents (published: 0).
        edge_weight: weight of the mean difference of edge vectors, which keeps the surface smooth where vertices are
            dense, on hands and faces (published: 0).
        free_shift: leave a shift of the whole mesh out of the loss (published). Without, decoded meshes are centred.

    Logs V2V_mm (mean vertex distance, both meshes centred) and PA-V2V_mm (after the best similarity), the published
    errors, and without `free_shift` also vertex_error_mm, the mean distance of the vertices as they are. A test of R
    residual quantizers also gives both errors of the meshes decoded with the first r of them, r = 1 … R.
    """

    def __init__(
        self,
        tokenizer: MeshVQVAE,
        lr: float = 5e-5,
        steps: int | None = None,
        final_lr: float = 0.01,
        unquantized_steps: int = 0,
        edge_weight: float = 0.0,
        free_shift: bool = True,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.lr, self.steps, self.final_lr = lr, steps, final_lr
        self.unquantized_steps, self.edge_weight, self.free_shift = unquantized_steps, edge_weight, free_shift
        self._distance_name = "V2V_mm" if free_shift else "vertex_error_mm"
        edges = unique_edges(tokenizer.faces) if edge_weight > 0 else None
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, vertices: Tensor) -> Tensor:
        """Vertices (B, V, 3) -> their reconstruction from tokens (B, V, 3)."""
        return self.tokenizer.decode(self.tokenizer.encode(vertices))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        vertices = batch["vertices"]
        decoded, quantized = self.tokenizer(vertices, quantize=self.global_step >= self.unquantized_steps)
        loss, metrics = self._loss(decoded, quantized.loss, vertices)
        metrics |= {"commitment": quantized.loss, "perplexity": quantized.perplexity}
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # the steps whose metrics are written
            metrics = _published_errors(decoded.detach(), vertices) | metrics
        for name, value in metrics.items():
            shown = name in (self._distance_name, "perplexity")
            self.log(f"train/{name}", value, prog_bar=shown, sync_dist=True)
        return loss

    def _loss(self, decoded: Tensor, commitment: Tensor, vertices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of decoded meshes (B, V, 3), and its terms in millimetres by name."""
        error = self._distances(decoded, vertices).mean()
        loss, terms = error + commitment, {self._distance_name: MM * error}
        if self.edges is not None:
            crumpling = edge_error(decoded, vertices, self.edges).mean()
            loss, terms["edge_error_mm"] = loss + self.edge_weight * crumpling, MM * crumpling
        return loss, terms

    def _distances(self, predicted: Tensor, true: Tensor) -> Tensor:
        """The distances (B, V) m of meshes (B, V, 3) that are trained."""
        return vertex_distances(predicted, true) if self.free_shift else (predicted - true).norm(dim=-1)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch["vertices"], "val")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        tokens = self._evaluate(batch["vertices"], "test")
        depth = tokens.shape[2] if tokens.ndim == 3 else 0  # R residual quantizers
        for r in range(1, depth + 1):
            decoded = self.tokenizer.decode(tokens[..., :r])
            for name, value in _published_errors(decoded, batch["vertices"]).items():
                self.log(f"test/{name}_first_{r}_of_{depth}", value, batch_size=len(decoded), sync_dist=True)

    def _evaluate(self, vertices: Tensor, split: str) -> Tensor:
        """Log the errors of vertices (B, V, 3); return their tokens."""
        decoded, quantized = self.tokenizer(vertices)
        loss, terms = self._loss(decoded, quantized.loss, vertices)
        unquantized = self.tokenizer(vertices, quantize=False).vertices
        name = self._distance_name
        metrics = {
            **_published_errors(decoded, vertices),
            **terms,
            f"{name}_worst_5_percent": MM * self._distances(decoded, vertices).flatten().quantile(0.95),
            f"{name}_unquantized": MM * self._distances(unquantized, vertices).mean(),
            "loss": loss,
        }
        for key, value in metrics.items():
            self.log(f"{split}/{key}", value, prog_bar=key == name, batch_size=len(vertices), sync_dist=True)
        self._codes_seen += torch.bincount(quantized.indices.flatten(), minlength=len(self._codes_seen))
        return quantized.indices

    def on_validation_epoch_start(self) -> None:
        # Not a buffer: averaged weights are swapped with their buffers before the epoch's end is reported.
        self._codes_seen = torch.zeros(self.tokenizer.codebook_size, device=self.device)

    def on_validation_epoch_end(self, split: str = "val") -> None:
        """Log how many codes the split's bodies use, on all processes together, and how evenly."""
        seen = self.trainer.strategy.reduce(self._codes_seen, reduce_op="sum")
        self.log(f"{split}/codes_used", (seen > 0).sum().float(), prog_bar=True)
        self.log(f"{split}/perplexity", perplexity(seen))

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")

    def configure_optimizers(self) -> dict:
        parameters = [p for p in self.tokenizer.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        if self.steps is None:
            return {"optimizer": optimizer}

        def share(step: int) -> float:
            falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
            return self.final_lr + (1 - self.final_lr) * falling

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _published_errors(predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    return {
        "V2V_mm": MM * vertex_distances(predicted, true).mean(),
        "PA-V2V_mm": MM * aligned_vertex_error(predicted, true).mean(),
    }
