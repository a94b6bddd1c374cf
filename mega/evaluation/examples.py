"""The best, the median and the worst people of an evaluation, to look at."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import default_collate

from mega.evaluation.measure import Options
from mega.evaluation.predict import predict
from mega.evaluation.results import Results
from mega.evaluation.subject import Subject
from mega.evaluation.testsets import TestSet
from mega.geometry import crop_camera_to_full

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
        size = batch["image"].shape[-1]
        square = torch.tensor([[0.0, 0.0, size, size]]).expand(len(rows), 4)
        shift = crop_camera_to_full(predicted.cam.cpu(), square, torch.tensor([size, size]).float(), _FAR * size)
        for i, row in enumerate(rows):
            examples.append(
                {
                    "title": f"{kind}: {errors[row]:.0f} mm",
                    "image": batch["image"][i].permute(1, 2, 0).cpu().numpy().round().astype(np.uint8),
                    "prediction": (predicted.mesh[i].cpu() + shift[i]).numpy(),
                    "truth": (truth[i].cpu() + shift[i]).numpy(),
                    "focal": _FAR * size,
                    "centre": (size / 2, size / 2),
                }
            )
    return examples
