"""Boxes around people that are followed over time by their 2D joints."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

_CONFIDENT = 0.3
_SIGMA = 8.0  # frames
_HEIGHT, _CROP = 150, 224  # px: how high the person is in the crop
_LEAST_HEIGHT = 1.0  # px, below which there is nobody


def smooth_boxes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in which a person is about 150 of 224 px high, smoothed over time.

    The height is the diagonal of the confident joints, which lying people have too. Between two frames with confident
    joints the box is interpolated. Before the first and after the last there is none.

    Args:
        points: (N, K, 3) joints, x, y px and confidence, a row for every frame of the sequence.

    Returns:
        center (N, 2) px, side (N,) px, and known (N,) bool. Where it is not known, the nearest one is given.

    Source: Kanazawa et al., Learning 3D Human Dynamics from Video, CVPR 2019, for the size and the smoothing.
    """
    confident = (points[..., 2:] > _CONFIDENT) & np.isfinite(points).all(axis=2, keepdims=True)
    low = np.where(confident, points[..., :2], np.inf).min(axis=1)
    high = np.where(confident, points[..., :2], -np.inf).max(axis=1)
    seen = confident.any(axis=(1, 2))
    center, height = np.zeros_like(low), np.zeros(len(low))
    center[seen] = (low[seen] + high[seen]) / 2
    height[seen] = np.linalg.norm(high[seen] - low[seen], axis=1)
    seen &= height > _LEAST_HEIGHT
    time = np.arange(len(points))
    if not seen.any():
        return center, np.ones(len(points)), seen
    magnification = np.divide(_HEIGHT, height, out=np.zeros_like(height), where=seen)
    tracks = [np.interp(time, time[seen], track[seen]) for track in (*center.T, magnification)]
    x, y, magnification = gaussian_filter1d(np.stack(tracks), _SIGMA, mode="nearest")
    known = (time >= time[seen][0]) & (time <= time[seen][-1])
    return np.stack([x, y], axis=1), _CROP / magnification, known
