"""Callbacks that draw what a network does, at each validation: a PNG in the run's folder and in the run's loggers."""

from __future__ import annotations

from pathlib import Path

import cv2
import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from mega.geometry import crop_camera_to_full, rot6d_to_matrix
from mega.models import codes_to_decode, predict_deterministic
from mega.rendering import draw_body, draw_people, panel


class MeshPanels(L.Callback):
    """Rows of bodies and their reconstructions, from the first validation batch.

    Args:
        folder: where `step_000500.png` and so on are written.
        n_bodies: how many bodies.
    """

    def __init__(self, folder: Path, n_bodies: int = 6):
        self.folder, self.n_bodies = Path(folder), n_bodies

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        truth = batch["vertices"][: self.n_bodies]
        with torch.no_grad():
            reconstruction = module(truth)
        faces = module.tokenizer.faces.cpu().numpy()
        rows = [
            [(draw_body(mesh, faces), caption if i == 0 else "") for i, mesh in enumerate(meshes.cpu().numpy())]
            for meshes, caption in ((truth, "bodies"), (reconstruction, "from tokens"))
        ]
        log_picture(trainer, self.folder, panel(rows))


def log_picture(trainer: L.Trainer, folder: Path, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) to the folder, named by the step, and to each logger that takes pictures.

    Of several processes only the first writes; a dry run writes nothing.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"step_{trainer.global_step:06d}.png"), picture[..., ::-1])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(folder.name, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(folder.name, [picture], trainer.global_step)


class PicturePanels(L.Callback):
    """Pictures, true and predicted meshes in place, from the first validation batch.

    Args:
        folder: where the pictures go.
        n_pictures: how many.
    """

    def __init__(self, folder: Path, n_pictures: int = 8):
        self.folder, self.n_pictures = Path(folder), n_pictures

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        images = batch["image"][: self.n_pictures]
        prediction = predict_deterministic(module.model, module.features(images))
        rotation = rot6d_to_matrix(prediction.rot6d)
        codes = codes_to_decode(module.tokenizer, prediction, module.decode)
        meshes = {
            "truth": batch["vertices"][: len(images)] @ batch["rotmat"][: len(images)].transpose(1, 2),
            "prediction": module.tokenizer.decode_latents(codes) @ rotation.transpose(1, 2),
        }
        faces = module.tokenizer.faces.cpu().numpy()
        size = images.shape[-1]
        focal = 5.0 * size  # far away: near the weak perspective of the predicted camera
        square = torch.tensor([[0.0, 0.0, size, size]]).expand(len(images), 4)
        shift = crop_camera_to_full(prediction.cam.cpu(), square, torch.tensor([size, size]).float(), focal)
        pictures = images.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
        rows = [[(picture, "picture" if i == 0 else "") for i, picture in enumerate(pictures)]]
        for name, mesh in meshes.items():
            placed = (mesh.cpu() + shift[:, None]).numpy()
            centre = (size / 2, size / 2)
            drawn = [draw_people(p, v[None], faces, focal, centre) for p, v in zip(pictures, placed, strict=True)]
            rows.append([(picture, name if i == 0 else "") for i, picture in enumerate(drawn)])
        log_picture(trainer, self.folder, panel(rows))
