"""The photographs without people that scikit-image carries in its wheel: free, and there without a download."""

from functools import cache

import cv2
import numpy as np

_NAMES = ("brick", "grass", "gravel", "chelsea", "coffee", "rocket", "hubble_deep_field", "coins", "motorcycle_left")
_LONGER_SIDE = 400  # px; enough for a background of 224


@cache
def load_photographs() -> tuple[np.ndarray, ...]:
    """Each (h, w, 3) uint8 RGB; read once a process. The grey ones stay grey: who uses them tints them."""
    from pathlib import Path

    from skimage import data

    folder = Path(data.__file__).parent
    photographs = []
    for name in _NAMES:
        path = next((path for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg")), None)
        picture = cv2.imread(str(path)) if path else None
        if picture is None:
            raise FileNotFoundError(f"scikit-image's photograph {name!r} is not in {folder}: reinstall scikit-image")
        scale = _LONGER_SIDE / max(picture.shape)
        photographs.append(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[..., ::-1])
    return tuple(np.ascontiguousarray(photo) for photo in photographs)
