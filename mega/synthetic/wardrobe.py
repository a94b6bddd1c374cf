"""Skin, hair, garments and shoes, defined on the body at rest.

`BodyMap` gives every vertex a few coordinates (how far along the arm, how high, on the head or not); an `Outfit` turns
these, interpolated to any point of the surface, into a colour. The edges of sleeves and hems are therefore as sharp as
the image, and a garment may have a thickness.
"""

from dataclasses import dataclass

import numpy as np

from mega.bodies import KEYPOINTS, AnnyBody
from mega.synthetic.fabrics import COLORS, Fabric, random_color, random_fabric, solid_noise

_SKIN_TONES = np.array(COLORS["skin"], np.float32)
_HAIR_COLORS = np.array([hair["color"] for hair in COLORS["hair"]], np.float32)
_HAIR_SHARES = [hair["share"] for hair in COLORS["hair"]]
_NOWHERE = 9.0  # metres; above every body, or with a minus below


class BodyMap:
    """Coordinates on the surface of the mean adult at rest.

    Attributes:
        fields: (V, 7) float32. Three columns are the position at rest (m); then `arm` from 0 at the shoulder over 1 at
            the elbow to 2 at the wrist (negative off the arms); `head` and `foot` from 0 to 1; `eye`, distance from the
            nearer eye (m).
        ear: (3,) m, the point between the ears.
        nose, shoulder, hip, knee, ankle: heights (m).
    """

    def __init__(self, body: AnnyBody) -> None:
        rest = body.template.numpy()
        points = dict(zip(KEYPOINTS, body.keypoints(body.template).numpy(), strict=True))
        bones = np.array(["root", *body.joint_names])
        weights = body.skinning_weights.numpy()

        def share(*prefixes: str) -> np.ndarray:
            return weights[:, [name.startswith(prefixes) for name in bones]].sum(axis=1)

        arm = np.full(len(rest), -0.5, np.float32)
        for side in ("left", "right"):
            shoulder, elbow, wrist = (points[f"{side}_{joint}"] for joint in ("shoulder", "elbow", "wrist"))
            of_side = rest[:, 0] > 0 if side == "left" else rest[:, 0] <= 0
            upper = share("upperarm") * of_side
            lower = share("lowerarm", "wrist", "metacarpal", "finger") * of_side
            along = np.where(lower > upper, 1 + _along(rest, elbow, wrist), _along(rest, shoulder, elbow))
            arm += (upper + lower) * (along + 0.5)
        eyes = np.stack([points["left_eye"], points["right_eye"]])
        eye = np.linalg.norm(rest[:, None] - eyes, axis=2).min(axis=1)
        columns = (*rest.T, arm, share("head", "neck02", "neck03", "eye"), share("foot", "toe"), eye)
        self.fields = np.stack(columns, axis=1).astype(np.float32)
        self.ear = (points["left_ear"] + points["right_ear"]) / 2
        self.nose = float(points["nose"][1])
        self.shoulder, self.hip, self.knee, self.ankle = (
            float(points[f"left_{joint}"][1]) for joint in ("shoulder", "hip", "knee", "ankle")
        )


def _along(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far points (V, 3) lie from start to end: 0 … 1."""
    return (points - start) @ (end - start) / np.sum((end - start) ** 2)


@dataclass(frozen=True)
class Garment:
    """A fabric where `low <= y < high` and `arm < sleeve`, and how far it stands off the skin, metres."""

    fabric: Fabric
    low: float
    high: float
    sleeve: float
    thickness: float
    neckline: float = 0.0  # how much deeper it is cut at the front, metres

    def covers(self, fields: np.ndarray) -> np.ndarray:
        """(n,) bool, at points with these fields (n, 7)."""
        x, y, z, arm, head, _, _ = fields.T
        cut = np.where(z > 0, self.neckline * np.clip(1 - np.abs(x) / 0.10, 0, 1), 0)
        return (y >= self.low) & (y < self.high - cut) & (arm < self.sleeve) & (head < 0.5)


class Outfit:
    """Skin, hair and clothes of one person, all random."""

    def __init__(self, rng: np.random.Generator, body_map: BodyMap) -> None:
        self.body_map = body_map
        tone = rng.uniform(0, len(_SKIN_TONES) - 1)
        light, dark = _SKIN_TONES[int(tone)], _SKIN_TONES[int(tone) + 1]
        skin = light + (tone - int(tone)) * (dark - light)
        hair = _HAIR_COLORS[rng.choice(len(_HAIR_COLORS), p=_HAIR_SHARES)] / 255
        bald, cap = rng.random() < 0.08, rng.random() < 0.12
        if cap or rng.random() < 0.05:
            hair = random_color(rng, neutral=0.3)
        self.top, self.bottom = _random_clothes(rng, body_map)
        # How far the hair falls below the ears at the back, metres.
        self.long_hair = rng.uniform(0.06, 0.32) if not bald and rng.random() < 0.4 else 0.0
        self.skin = (skin / 255 * rng.uniform(0.88, 1.04) + rng.normal(0, 0.012, 3)).clip(0.03, 1).astype(np.float32)
        self.hair = (hair + rng.normal(0, 0.02, 3)).clip(0.03, 1).astype(np.float32)
        self.hairline = 1.0 if bald else rng.uniform(-0.01, 0.03)  # metres, see `_has_hair`
        self.beard = not self.long_hair and rng.random() < 0.25
        self.hair_thickness = rng.uniform(0.004, 0.03)
        self.sock = random_color(rng, neutral=0.8)
        self.sock_height = body_map.ankle + rng.uniform(-0.04, 0.2) if rng.random() < 0.6 else -_NOWHERE
        self.shoe = random_color(rng, neutral=0.7)
        kind = rng.random()
        if kind < 0.08:  # barefoot
            self.shoe_height = -_NOWHERE
        else:
            self.shoe_height = body_map.ankle + (rng.uniform(0.05, 0.3) if kind < 0.2 else rng.uniform(-0.04, 0.03))
        self.gloves = rng.random() < 0.03
        self.wrinkles = rng.uniform(0.02, 0.10)
        self.noise_offset = rng.uniform(0, 5, 3).astype(np.float32)

    def thickness(self, fields: np.ndarray) -> np.ndarray:
        """How far the surface stands off the skin (n,), metres, at points with these fields (n, 7)."""
        garments = [np.where(garment.covers(fields), garment.thickness, 0) for garment in (self.top, self.bottom)]
        thick = np.maximum(*garments)
        shod = (fields[:, 5] > 0.5) | (fields[:, 1] < self.shoe_height)
        thick = np.where(shod, np.maximum(thick, 0.006), thick)
        return np.where(self._has_hair(fields), self.hair_thickness, thick).astype(np.float32)

    def paint(self, fields: np.ndarray) -> np.ndarray:
        """Colours (n, 3), sRGB in [0, 1], at points with these fields (n, 7)."""
        _, y, _, arm, head, foot, eye = fields.T
        points = fields[:, :3] + self.noise_offset
        colors = np.empty((len(fields), 3), np.float32)
        colors[:] = self.skin

        leg = (head <= 0.5) & (arm < 0.2)
        colors[leg & (y < self.sock_height)] = self.sock
        for garment in (self.bottom, self.top):
            worn = np.flatnonzero(garment.covers(fields))
            cloth = garment.fabric(fields[worn, :3])
            folds = solid_noise(points[worn] * (1, 0.4, 1), 0.08)
            colors[worn] = cloth * (1 + self.wrinkles * folds[:, None])
        colors[leg & ((foot > 0.4) | (y < self.shoe_height)) & (y < self.shoe_height + 0.02)] = self.shoe
        if self.gloves:
            colors[arm > 1.95] = self.shoe

        haired = np.flatnonzero(self._has_hair(fields))
        strands = solid_noise(points[haired] * (3, 0.6, 3), 0.06)
        colors[haired] = self.hair * (1 + 0.16 * strands[:, None])
        near_eye = (head > 0.5) & (eye < 0.013)
        colors[near_eye] = np.where((eye[near_eye] < 0.006)[:, None], 0.12, 0.7)
        return colors.clip(0, 1)

    def _has_hair(self, fields: np.ndarray) -> np.ndarray:
        x, y, z, _, head, _, _ = fields.T
        up, front = y - self.body_map.ear[1], z - self.body_map.ear[2]
        hair = (head > 0.5) & (up - 0.8 * front > self.hairline)
        if self.long_hair > 0:
            curtain = (np.abs(x) < 0.12) & (front < 0.02) & (up < 0.05) & (up > -self.long_hair)
            hair |= curtain & ((head > 0.3) | (front < -0.03))
        if self.beard:
            hair |= (head > 0.5) & (y < self.body_map.nose - 0.025) & (front > 0.03) & (up > -0.14)
        return hair


def _random_clothes(rng: np.random.Generator, body_map: BodyMap) -> tuple[Garment, Garment]:
    """A top and a bottom; alike for a dress, an overall or a suit."""
    hip, knee, ankle = body_map.hip, body_map.knee, body_map.ankle
    long, short, none = (1.75, 2.0), (0.35, 0.8), (-0.1, 0.1)
    sleeve = rng.uniform(*(long, short, none)[rng.choice(3, p=(0.45, 0.43, 0.12))])
    trousers, shorts = (ankle - 0.02, ankle + 0.12), (knee - 0.05, hip - 0.12)
    hem = rng.uniform(*(trousers, shorts)[rng.choice(2, p=(0.62, 0.38))])
    waist = hip + rng.uniform(0.08, 0.2)
    top_fabric = random_fabric(rng)
    alike = rng.random() < 0.15
    bottom_fabric = top_fabric if alike else random_fabric(rng)
    top = Garment(
        fabric=top_fabric,
        low=waist - (0.02 if alike else rng.uniform(-0.04, 0.22)),
        high=body_map.shoulder + rng.uniform(0.03, 0.11),
        sleeve=sleeve,
        thickness=rng.uniform(0.001, 0.018),
        neckline=rng.uniform(0.0, 0.16),
    )
    if rng.random() < 0.03:  # no shirt
        top = Garment(top_fabric, low=_NOWHERE, high=_NOWHERE, sleeve=sleeve, thickness=0.0)
    bottom = Garment(bottom_fabric, low=hem, high=waist, sleeve=0.25, thickness=rng.uniform(0.001, 0.022))
    return top, bottom
