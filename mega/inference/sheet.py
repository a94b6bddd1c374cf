"""The drawing of a picture's people: input, in place, from the side and, of samples, their spread."""

import cv2
import numpy as np

from mega.inference.predictor import People
from mega.rendering import draw_people, draw_side_view, draw_uncertainty, panel, people_openness

MIN_DRAWN_SIDE = 512  # px, longer side; smaller pictures are enlarged, so that the bodies are drawn well


def draw_sheet(image: np.ndarray, people: People, max_side: int = 1024) -> np.ndarray:
    """Input | in place | from the side | uncertainty, as one picture (h, w, 3) uint8 RGB.

    Args:
        image: (h, w, 3) uint8.
        max_side: of the longer side of the input in the drawing, px.
    """
    picture, focal, centre = scale_to_draw(image, people, max_side)
    light = people_openness(people.vertices, people.faces)

    cells = [
        (picture, "input"),
        (draw_people(picture, people.vertices, people.faces, focal, centre, open_share=light), "in place"),
        (draw_side_view(people.vertices, people.faces, len(picture), open_share=light), "from the side"),
    ]
    if people.uncertainty is not None:
        heat = draw_uncertainty(picture, people.vertices, people.faces, focal, centre, people.uncertainty, light)
        cells.append((heat, f"uncertainty: spread of {people.samples.shape[1]} samples"))
    return panel([cells])


def scale_to_draw(image: np.ndarray, people: People, max_side: int) -> tuple[np.ndarray, float, np.ndarray]:
    """The picture in the size it is drawn in, the focal length and the principal point (2,) to go with it, px."""
    longer = max(image.shape[:2])
    scale = float(np.clip(longer, min(MIN_DRAWN_SIDE, max_side), max_side)) / longer
    if scale == 1:
        return image, people.focal, people.principal_point
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # Pixel centres lie at whole numbers, so the corner at -0.5 is what stays in place.
    return picture, people.focal * scale, (people.principal_point + 0.5) * scale - 0.5
