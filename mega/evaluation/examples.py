"""People of an evaluation to look at: the best, the median and the worst, or every one as it is measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mega.evaluation.measure import Options
from mega.evaluation.pictures import draw_person, to_jpeg
from mega.evaluation.predict import predict
from mega.evaluation.results import Results
from mega.evaluation.subject import Subject
from mega.evaluation.testsets import TestSet
from mega.geometry import MM_PER_M, crop_camera_to_full
from mega.models import Predicted
from mesh_vq_vae.whole_files import write_whole

_FAR = 5.0  # focal length in sides of the crop: near the weak perspective of the predicted camera


@torch.no_grad()
def choose_examples(subject: Subject, people: TestSet, results: Results, options: Options, each: int) -> list[dict]:
    """The `each` best, median and worst people by the PVE of the first protocol, as `write_report` draws them."""
    column = next(name for name in results.columns if name.endswith("/PVE"))
    errors = results.columns[column]
    order = np.argsort(errors, kind="stable")
    each = min(each, len(order))
    if each == 0:
        return []
    middle = max(0, (len(order) - each) // 2)
    examples = []
    for kind, rows in (("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[-each:])):
        batch = {k: v.to(subject.device) for k, v in default_collate([people.items[int(row)] for row in rows]).items()}
        predicted, truth = predict(subject, batch["image"], options.decode, options.average), people.truth(batch)
        shift, camera = _place(predicted.cam, batch["image"].shape[-1])
        for i, row in enumerate(rows):
            examples.append(
                {
                    "title": f"{kind}: {errors[row]:.0f} mm",
                    "image": _pixels(batch["image"][i]),
                    "prediction": (predicted.mesh[i].cpu() + shift[i]).numpy(),
                    "truth": (truth[i].cpu() + shift[i]).numpy(),
                    **camera,
                }
            )
    return examples


class PersonPictures:
    """Writes a picture of each person, `000123_NAME_p0.jpg`, of a batch that has been measured.

    What is there already is left alone, so an interrupted evaluation makes only the missing ones.

    Args:
        folder: of the pictures; made when the first is written.
        protocol: name of the protocol whose errors are written below the prediction.
        count: only of the first so many people of the test set.
    """

    def __init__(self, folder: Path, subject: Subject, people: TestSet, protocol: str, count: int):
        self.folder, self.protocol, self.count = folder, protocol, count
        self.faces = subject.tokenizer.faces.cpu().numpy()
        self.images, self.persons = people.imgname, people.persons()

    def __call__(self, batch: dict, predicted: Predicted, found: dict[str, Tensor]) -> None:
        """See `mega.evaluation.measure.Measuring`."""
        shift, camera = _place(predicted.cam, batch["image"].shape[-1])
        spread = found.get("vertex_spread")
        for i, row in enumerate(batch["index"].tolist()):
            path = self.folder / self._file_name(row)
            if row >= self.count or path.is_file():
                continue
            person = {
                "title": f"{Path(self.images[row]).name}, person {self.persons[row]}",
                "errors": self._errors(found, i),
                "image": _pixels(batch["image"][i]),
                "prediction": (predicted.mesh[i].cpu() + shift[i]).numpy(),
                "spread": None if spread is None else spread[i].cpu().numpy() / MM_PER_M,
                **camera,
            }
            write_whole(path, to_jpeg(draw_person(person, self.faces)))

    def _file_name(self, row: int) -> str:
        # The end of a path says more than its beginning, and file names are limited to 255 bytes.
        name = re.sub(r"[^A-Za-z0-9-]+", "_", str(Path(self.images[row]).with_suffix("")))[-100:].strip("_")
        return f"{row:06}_{name}_p{self.persons[row]}.jpg"

    def _errors(self, found: dict[str, Tensor], i: int) -> str:
        errors = {name: found[f"deterministic/{self.protocol}/{name}"][i] for name in ("PVE", "MPJPE", "PA-MPJPE")}
        return ", ".join(f"{name} {error:.1f}" for name, error in errors.items()) + f" mm ({self.protocol})"


def _place(cam: Tensor, size: int) -> tuple[Tensor, dict]:
    """Where people (B, 3) m stand in a camera far from crops of `size` px, and that camera: {"focal", "centre"} px."""
    square = torch.tensor([[0.0, 0.0, size, size]]).expand(len(cam), 4)
    shift = crop_camera_to_full(cam.cpu(), square, torch.tensor([size, size]).float(), _FAR * size)
    return shift, {"focal": _FAR * size, "centre": (size / 2, size / 2)}


def _pixels(image: Tensor) -> np.ndarray:
    """(3, S, S) in [0, 255] -> (S, S, 3) uint8."""
    return image.permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)
