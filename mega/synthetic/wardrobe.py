"""Skin, hair, garments and shoes, defined on the body at rest.

`BodyMap` gives every vertex a few coordinates (how far along the arm, how high, on the head or not); an `Outfit` turns
these, interpolated to any point of the surface, into a colour. The edges of sleeves and hems are therefore as sharp as
the image, and a garment may have a thickness.
"""

from dataclasses import dataclass

import numpy as np

from mega.bodies import KEYPOINTS, AnnyBody
from mega.synthetic.fabrics import Fabric, random_color, random_fabric, solid_noise

# From very light to very dark, sRGB.
_SKIN_TONES = np.array(
    [
        (244, 212, 192),
        (230, 188, 160),
        (206, 160, 128),
        (174, 126, 94),
        (138, 94, 66),
        (100, 66, 46),
        (70, 46, 34),
    ],
    np.float32,
)
_HAIR_COLORS = np.array(
    [
        (28, 22, 20),
        (48, 34, 26),
        (80, 54, 36),
        (122, 86, 52),
        (186, 148, 92),
        (132, 60, 34),
        (140, 138, 136),
        (215, 213, 210),
    ],
    np.float32,
)
_HAIR_SHARES = (0.28, 0.24, 0.16, 0.10, 0.08, 0.04, 0.06, 0.04)

#: What `BodyMap.fields` holds, by column.
FIELDS = ("x", "y", "z", "arm", "head", "foot", "eye")


class BodyMap:
    """Coordinates on the surface of the mean adult at rest.

    Attributes:
        fields: (V, 7) float32, the columns of `FIELDS`: position at rest (m); `arm` from 0 at the shoulder over 1 at
            the elbow to 2 at the wrist (negative off the arms); `head` and `foot` from 0 to 1; `eye`, distance from the
            nearer eye (m).
        landmarks: heights and places that garments are cut to (m).
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
        self.landmarks = Landmarks(
            ear=(points["left_ear"] + points["right_ear"]) / 2,
            nose=float(points["nose"][1]),
            shoulder=float(points["left_shoulder"][1]),
            hip=float(points["left_hip"][1]),
            knee=float(points["left_knee"][1]),
            ankle=float(points["left_ankle"][1]),
        )


@dataclass(frozen=True)
class Landmarks:
    """Where garments begin and end on the body at rest: heights in metres, and the point between the ears (3,)."""

    ear: np.ndarray
    nose: float
    shoulder: float
    hip: float
    knee: float
    ankle: float


@dataclass(frozen=True)
class Garment:
    """A fabric where `low <= y < high` and `arm < sleeve`, and how far it stands off the skin, metres."""

    fabric: Fabric
    low: float
    high: float
    sleeve: float
    thickness: float
    neckline: float = 0.0  # how much deeper it is cut at the front, metres

    def covers(self, y: np.ndarray, x: np.ndarray, z: np.ndarray, arm: np.ndarray) -> np.ndarray:
        """(n,) bool."""
        high = self.high
        if self.neckline:
            high = high - np.where(z > 0, self.neckline * np.clip(1 - np.abs(x) / 0.10, 0, 1), 0)
        return (y >= self.low) & (y < high) & (arm < self.sleeve)


@dataclass(frozen=True)
class Outfit:
    """A dressed person: what each point of the body looks like, and how far clothes and hair stand off."""

    skin: np.ndarray
    hair: np.ndarray
    hairline: float  # what grows hair: `_hairiness` above it; large for a bald head
    long_hair: float  # how far the hair falls below the ears at the back, metres
    beard: bool
    hair_thickness: float
    top: Garment
    bottom: Garment
    sock: np.ndarray
    sock_height: float
    shoe: np.ndarray
    shoe_height: float
    gloves: bool
    wrinkles: float
    landmarks: Landmarks
    seed_offset: np.ndarray

    def thickness(self, fields: np.ndarray) -> np.ndarray:
        """How far the surface stands off the skin (n,), metres."""
        x, y, z, arm, head, foot, _ = fields.T
        off_head = head < 0.5
        thick = np.where(self.top.covers(y, x, z, arm) & off_head, self.top.thickness, 0)
        thick = np.maximum(thick, np.where(self.bottom.covers(y, x, z, arm) & off_head, self.bottom.thickness, 0))
        thick = np.where((foot > 0.5) | (y < self.shoe_height), np.maximum(thick, 0.006), thick)
        return np.where(self._has_hair(fields), self.hair_thickness, thick).astype(np.float32)

    def paint(self, fields: np.ndarray) -> np.ndarray:
        """Colours (n, 3), sRGB in [0, 1], at points with these fields (n, 7)."""
        x, y, z, arm, head, foot, eye = fields.T
        points = fields[:, :3] + self.seed_offset
        colors = np.empty((len(fields), 3), np.float32)
        colors[:] = self.skin
        on_head = head > 0.5
        off_head = ~on_head

        leg = off_head & (arm < 0.2)
        colors[leg & (y < self.sock_height)] = self.sock
        for garment in (self.bottom, self.top):
            worn = np.flatnonzero(off_head & garment.covers(y, x, z, arm))
            cloth = garment.fabric(fields[worn, :3])
            folds = solid_noise(points[worn] * (1, 0.4, 1), 0.08)
            colors[worn] = cloth * (1 + self.wrinkles * folds[:, None])
        colors[leg & ((foot > 0.4) | (y < self.shoe_height)) & (y < self.shoe_height + 0.02)] = self.shoe
        if self.gloves:
            colors[arm > 1.95] = self.shoe

        haired = np.flatnonzero(self._has_hair(fields))
        strands = solid_noise(points[haired] * (3, 0.6, 3), 0.06)
        colors[haired] = self.hair * (1 + 0.16 * strands[:, None])
        near_eye = on_head & (eye < 0.013)
        colors[near_eye] = np.where((eye[near_eye] < 0.006)[:, None], 0.12, 0.7)
        return colors.clip(0, 1)

    def _has_hair(self, fields: np.ndarray) -> np.ndarray:
        x, y, z, _, head, _, _ = fields.T
        up, front = y - self.landmarks.ear[1], z - self.landmarks.ear[2]
        hair = (head > 0.5) & (up - 0.8 * front > self.hairline)
        if self.long_hair > 0:
            curtain = (np.abs(x) < 0.12) & (front < 0.02) & (up < 0.05) & (up > -self.long_hair)
            hair |= curtain & ((head > 0.3) | (front < -0.03))
        if self.beard:
            hair |= (head > 0.5) & (y < self.landmarks.nose - 0.025) & (front > 0.03) & (up > -0.14)
        return hair


def _along(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far points (V, 3) lie from start to end: 0 … 1."""
    return (points - start) @ (end - start) / np.sum((end - start) ** 2)


def random_outfit(rng: np.random.Generator, landmarks: Landmarks) -> Outfit:
    """Skin, hair and clothes of one person."""
    tone = rng.uniform(0, len(_SKIN_TONES) - 1)
    low = int(tone)
    skin = _SKIN_TONES[low] + (tone - low) * (_SKIN_TONES[min(low + 1, len(_SKIN_TONES) - 1)] - _SKIN_TONES[low])
    hair = _HAIR_COLORS[rng.choice(len(_HAIR_COLORS), p=_HAIR_SHARES)] / 255
    bald, cap = rng.random() < 0.08, rng.random() < 0.12
    if cap or rng.random() < 0.05:
        hair = random_color(rng, neutral=0.3)
    top, bottom = _random_clothes(rng, landmarks)
    long_hair = rng.uniform(0.06, 0.32) if not bald and rng.random() < 0.4 else 0.0
    return Outfit(
        skin=(skin / 255 * rng.uniform(0.88, 1.04) + rng.normal(0, 0.012, 3)).clip(0.03, 1).astype(np.float32),
        hair=(hair + rng.normal(0, 0.02, 3)).clip(0.03, 1).astype(np.float32),
        hairline=1.0 if bald else rng.uniform(-0.01, 0.03),
        long_hair=long_hair,
        beard=not long_hair and rng.random() < 0.25,
        hair_thickness=rng.uniform(0.004, 0.03),
        top=top,
        bottom=bottom,
        sock=random_color(rng, neutral=0.8),
        sock_height=landmarks.ankle + rng.uniform(-0.04, 0.2) if rng.random() < 0.6 else -9.0,
        shoe=random_color(rng, neutral=0.7),
        shoe_height=_shoe_height(rng, landmarks),
        gloves=rng.random() < 0.03,
        wrinkles=rng.uniform(0.02, 0.10),
        landmarks=landmarks,
        seed_offset=rng.uniform(0, 5, 3).astype(np.float32),
    )


def _shoe_height(rng: np.random.Generator, landmarks: Landmarks) -> float:
    kind = rng.random()
    if kind < 0.08:
        return -9.0  # barefoot
    return landmarks.ankle + (rng.uniform(0.05, 0.3) if kind < 0.2 else rng.uniform(-0.04, 0.03))


def _random_clothes(rng: np.random.Generator, landmarks: Landmarks) -> tuple[Garment, Garment]:
    """A top and a bottom; alike for a dress, an overall or a suit."""
    hip, knee, ankle, shoulder = landmarks.hip, landmarks.knee, landmarks.ankle, landmarks.shoulder
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
        low=waist - rng.uniform(-0.04, 0.22) if not alike else waist - 0.02,
        high=shoulder + rng.uniform(0.03, 0.11),
        sleeve=sleeve,
        thickness=rng.uniform(0.001, 0.018),
        neckline=rng.uniform(0.0, 0.16),
    )
    if rng.random() < 0.03:  # no shirt
        top = Garment(top_fabric, 9.0, 9.0, sleeve, 0.0)
    bottom = Garment(bottom_fabric, hem, waist, 0.25, rng.uniform(0.001, 0.022))
    return top, bottom
