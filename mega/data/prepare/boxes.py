"""Boxes around people that are followed over time by their 2D joints."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter

_CONFIDENT = 0.3
_MEDIAN, _SIGMA = 11, 8.0  # frames
_HEIGHT, _CROP = 150, 200  # px: how high the person is in the crop
_LEAST_HEIGHT = 0.5  # px, below which there is nobody


def smooth_boxes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in which a person is about 150 of 200 px high, smoothed over time, as in the published annotations of 3DPW.

    In a frame, the centre is the middle of the rectangle around the confident joints, and the height is its diagonal,
    which lying people have too. Centre and 150 / height are interpolated linearly between two frames with confident
    joints; then come a median filter of 11 frames and a Gaussian of sigma 8 frames. The track begins at the first frame
    with confident joints and ends at the last. Beyond its ends, the median filter sees zeros: in the first and the last
    five frames, it gives a lower rank than the median, as in the published preparation. The Gaussian sees the track
    reflected. On a track of five frames or fewer, where zeros would be the majority, the median filter is left out.

    Args:
        points: (N, K, 3) joints, x, y px and confidence, a row for every frame of the sequence.

    Returns:
        center (N, 2) px, side (N,) px, and known (N,) bool: whether the frame lies on the track. Elsewhere, the nearest
        box of the track is given.

    Source: Kanazawa et al., Learning 3D Human Dynamics from Video, CVPR 2019, for the size and the smoothing.
    """
    confident = (points[..., 2:] > _CONFIDENT) & np.isfinite(points).all(axis=2, keepdims=True)
    low = np.where(confident, points[..., :2], np.inf).min(axis=1)
    high = np.where(confident, points[..., :2], -np.inf).max(axis=1)
    seen = confident.any(axis=(1, 2))
    center, height = np.zeros_like(low), np.zeros(len(low))
    center[seen] = (low[seen] + high[seen]) / 2
    height[seen] = np.linalg.norm(high[seen] - low[seen], axis=1)
    seen &= height >= _LEAST_HEIGHT
    if not seen.any():
        return center, np.ones(len(points)), seen
    time = np.flatnonzero(seen)
    first, last = time[0], time[-1]
    observed = np.stack([*center[seen].T, _HEIGHT / height[seen]])
    track = np.stack([np.interp(np.arange(first, last + 1), time, values) for values in observed])
    if track.shape[1] > _MEDIAN // 2:
        track = median_filter(track, (1, _MEDIAN), mode="constant", cval=0)
    track = gaussian_filter1d(track, _SIGMA)
    x, y, magnification = np.pad(track, ((0, 0), (first, len(points) - 1 - last)), mode="edge")
    known = (np.arange(len(points)) >= first) & (np.arange(len(points)) <= last)
    return np.stack([x, y], axis=1), _CROP / magnification, known
