"""Sheets of pictures with captions, and the uncertainty heat map with its scale."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mega.rendering.people import draw_people
from mega.rendering.shading import heat_colors

INK = (58, 60, 66)
PAPER = 255


def draw_uncertainty(
    image: np.ndarray,
    vertices: np.ndarray,
    faces: np.ndarray,
    focal: float,
    principal_point: np.ndarray,
    uncertainty: np.ndarray,
    open_share: np.ndarray | None = None,
) -> np.ndarray:
    """The people over a faded picture, coloured by `uncertainty` (P, V) m, with a scale on the right."""
    limit = round_limit(uncertainty)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    faded = (0.55 * grey + 0.45 * 235).astype(np.uint8).repeat(3, axis=2)
    colors = heat_colors(uncertainty, limit)
    drawn = draw_people(faded, vertices, faces, focal, principal_point, colors, open_share)
    return np.concatenate([drawn, color_bar(len(drawn), limit)], axis=1)


def round_limit(values: np.ndarray) -> float:
    """The end of a colour scale: the next of 1, 2, 5, 10, 20, … mm at or above 98 % of the values (m), in metres.

    A few wild fingers must not fade all other vertices.
    """
    if not np.size(values):
        return 0.01
    value = max(float(np.quantile(values, 0.98)), 1e-3)
    power = 10 ** np.floor(np.log10(value) + 1e-9)
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9)))


def color_bar(height: int, limit: float) -> np.ndarray:
    """(height, w, 3) uint8: the heat colours from 0 to `limit` m, in mm below 5 cm and in cm from there."""
    unit, scale = ("cm", 100) if limit >= 0.05 else ("mm", 1000)
    size = _font_size(height)
    bar_width, margin = max(8, round(0.8 * size)), round(0.5 * size)
    canvas = Image.new("RGB", (bar_width + margin + 4 * size, height), (PAPER,) * 3)
    top, bottom = round(0.1 * height), round(0.9 * height)
    ramp = heat_colors(np.linspace(limit, 0, max(bottom - top, 2)), limit)[:, None]
    bar = Image.fromarray((255 * ramp.repeat(bar_width, axis=1)).astype(np.uint8))
    canvas.paste(bar, (margin, top))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        label = f"{share * limit * scale:g}" + (f" {unit}" if share == 1 else "")
        pen.text((margin + bar_width + 0.4 * size, y), label, INK, font, anchor="lm")
    return np.asarray(canvas)


def panel(rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> np.ndarray:
    """Rows of (picture, caption) on white paper; within a row all pictures get the height of the tallest.

    Pictures are (h, w, 3) uint8; rows in which no picture has a caption leave no room for one.
    """
    strips = [_row(row) for row in rows]
    width, gap = max(strip.shape[1] for strip in strips), max(4, len(strips[0]) // 60)
    strips = [_with_paper(strip, top=gap, left=gap, right=gap + width - strip.shape[1]) for strip in strips]
    return _with_paper(np.concatenate(strips), bottom=gap)


def _row(row: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    height = max(len(picture) for picture, _ in row)
    cells = []
    for picture, caption in row:
        if len(picture) != height:
            width = max(1, round(picture.shape[1] * height / len(picture)))
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
        if any(text for _, text in row):
            picture = np.concatenate([picture, _caption(caption, picture.shape[1], _font_size(height))])
        cells.append(_with_paper(picture, left=max(4, height // 60) if cells else 0))
    return np.concatenate(cells, axis=1)


def _caption(text: str, width: int, size: int) -> np.ndarray:
    """(h, width, 3): the text, centred, in a smaller font if it would not fit."""
    canvas = Image.new("RGB", (width, round(2.2 * size)), (PAPER,) * 3)
    font = ImageFont.load_default(size)
    if (needed := font.getlength(text)) > 0.95 * width:
        font = ImageFont.load_default(max(6, size * 0.95 * width / needed))
    ImageDraw.Draw(canvas).text((width / 2, 1.1 * size), text, INK, font, anchor="mm")
    return np.asarray(canvas)


def _font_size(picture_height: int) -> int:
    return max(10, round(picture_height / 30))


def _with_paper(picture: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    return cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAPER,) * 3)
