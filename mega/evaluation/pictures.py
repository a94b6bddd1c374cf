"""Pictures of an evaluation: where on the body the errors are, examples of predictions, and a person by itself."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mega.evaluation.results import Results
from mega.rendering import draw_people, draw_side_view, draw_uncertainty, panel, people_openness
from mega.rendering.panels import color_bar
from mega.rendering.shading import heat_colors, palette_colors

_BODY_HEIGHT = 560  # px
_EXAMPLE_SIDE = 260  # px
_PERSON_SIDE = 384  # px
_WELL_BELOW = 0.98  # share of the vertices below the end of a scale, lest a few wild fingers fade the rest


def draw_errors_on_body(results: Results, faces: np.ndarray, template: np.ndarray) -> np.ndarray | None:
    """The template (V, 3) m, Y up, in the colours of the mean error by vertex, front and back, and of the spread.

    Returns:
        (H, W, 3) uint8, or None without errors by vertex.
    """
    cells = []
    for name, values in (("error", results.vertex_error), ("spread", results.vertex_spread)):
        if values is None or not np.isfinite(values).any():
            continue
        metres = np.nan_to_num(np.asarray(values, float)) / 1000
        limit = _scale_end(metres)
        colors = heat_colors(metres, limit)[None]
        for side, sign in (("front", 1), ("back", -1)):
            seen = _facing(template, sign)
            cells.append((draw_side_view(seen, faces, _BODY_HEIGHT, colors), f"{name}, {side}"))
        cells.append((color_bar(_BODY_HEIGHT, limit), ""))
    return panel([cells]) if cells else None


def draw_examples(examples: Sequence[dict], faces: np.ndarray) -> np.ndarray | None:
    """A row an example: picture, truth, prediction, the error in colours, and both from the side.

    Args:
        examples: "title": text; "image": (S, S, 3) uint8 RGB; "prediction", "truth": (V, 3) m, in the camera frame of
            the picture, placed; "focal": px; "centre": (2,) px, principal point.
        faces: (F, 3).

    Returns:
        (H, W, 3) uint8, or None without examples. All rows have the same scale of colours.
    """
    if not examples:
        return None
    errors = [_centred_error(example["prediction"], example["truth"]) for example in examples]
    limit = _scale_end(np.concatenate(errors))
    rows = [_example_row(example, faces, error, limit) for example, error in zip(examples, errors, strict=True)]
    return panel(rows)


def _example_row(example: dict, faces: np.ndarray, error: np.ndarray, limit: float) -> list:
    truth, prediction = example["truth"][None], example["prediction"][None]
    picture, camera = _enlarged(example, _EXAMPLE_SIDE)
    heat = heat_colors(error, limit)[None]
    paper = np.full_like(picture, 244)
    light = people_openness(prediction, faces)
    colors = palette_colors(2)
    side = draw_side_view(np.concatenate([truth, prediction]), faces, _EXAMPLE_SIDE, colors)
    return [
        (picture, example["title"]),
        (draw_people(picture, truth, faces, *camera, colors[:1]), "truth"),
        (draw_people(picture, prediction, faces, *camera, colors[1:], light), "prediction"),
        (draw_people(paper, prediction, faces, *camera, heat, light), "error"),
        (color_bar(_EXAMPLE_SIDE, limit), ""),
        (side, "both from the side"),  # last, since its width differs
    ]


def draw_person(person: dict, faces: np.ndarray) -> np.ndarray:
    """Crop, prediction in place and from the side and, of samples, how much they differ at each vertex.

    Args:
        person: "image", "prediction", "focal", "centre": as in `draw_examples`; "title", "errors": captions; "spread":
            (V,) m, standard deviation over the samples, or None without samples.
        faces: (F, 3).

    Returns:
        (H, W, 3) uint8.
    """
    prediction = person["prediction"][None]
    picture, camera = _enlarged(person, _PERSON_SIDE)
    light = people_openness(prediction, faces)
    cells = [
        (picture, person["title"]),
        (draw_people(picture, prediction, faces, *camera, open_share=light), person["errors"]),
        (draw_side_view(prediction, faces, _PERSON_SIDE, open_share=light), "from the side"),
    ]
    if person["spread"] is not None:
        heat = draw_uncertainty(picture, prediction, faces, *camera, person["spread"][None], light)
        cells.append((heat, f"standard deviation of the samples, mean {1000 * person['spread'].mean():.1f} mm"))
    return panel([cells])


def _enlarged(example: dict, side: int) -> tuple[np.ndarray, tuple[float, np.ndarray]]:
    """The crop with a height of `side` px, and the focal length and principal point to go with it, px."""
    image = example["image"]
    scale = side / image.shape[0]
    picture = cv2.resize(image, (round(image.shape[1] * scale), side), interpolation=cv2.INTER_CUBIC)
    # Pixel centres lie at whole numbers, so the corner at -0.5 is what stays in place.
    return picture, (example["focal"] * scale, (np.asarray(example["centre"]) + 0.5) * scale - 0.5)


def to_jpeg(image: np.ndarray) -> bytes:
    """An RGB picture (H, W, 3) uint8 as the content of a file."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _centred_error(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(V,) m, of meshes (V, 3) that are centred on their vertices."""
    return np.linalg.norm((prediction - prediction.mean(0)) - (truth - truth.mean(0)), axis=1)


def _facing(template: np.ndarray, sign: int) -> np.ndarray:
    """(1, V, 3): a canonical mesh turned so that the side view shows its front (sign 1) or its back (-1)."""
    x, y, z = np.asarray(template, np.float32).T
    return np.stack([sign * z, -y, sign * x], 1)[None]


def _scale_end(metres: np.ndarray) -> float:
    """A figure of few digits that nearly all values stay below, in metres."""
    value = max(float(np.quantile(metres, _WELL_BELOW)), 1e-3)
    step = 0.2 * 10 ** np.floor(np.log10(value))
    return float(np.ceil(value / step - 1e-9) * step)
