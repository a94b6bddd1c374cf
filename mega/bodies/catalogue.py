"""Everyday stances and gestures, in anatomical angles (degrees, see `mega.bodies.rig`).

Each entry goes from one key pose to another (a step from heel strike to passing, a squat from shallow to deep), and a
sample lies anywhere between. A name without a side stands for both; what is not named keeps its value in `RELAXED`.
Everything is written one-handed: the sampler mirrors every second pose.
"""

from typing import NamedTuple

#: Standing at ease: what an entry does not name.
RELAXED = "shoulder_abduct 9, shoulder_flex 2, shoulder_twist -8, elbow 14, curl 18, hip_abduct 3, hip_twist 6, knee 3"


class Entry(NamedTuple):
    """A range of poses.

    Attributes:
        name: for people.
        weight: how often it is drawn, relative to the others of its table.
        start, end: the two key poses; `end` names only what differs from `start`.
    """

    name: str
    weight: float
    start: str
    end: str


#: Legs and trunk, with the arms that go with them when no gesture is drawn.
STANCES = (
    Entry("stand", 10, "", "hip_abduct 9"),
    Entry("stand, feet apart", 4, "hip_abduct 8", "hip_abduct 22, hip_twist 14"),
    Entry(
        "contrapposto",
        8,
        "spine_side -4, hip_flex.L 8, knee.L 14, hip_abduct.L 8, hip_abduct.R -4, hip_twist.L 12",
        "spine_side -12, hip_flex.L 22, knee.L 38, hip_twist.L 25, spine_twist 8, hip_abduct.R -8",
    ),
    Entry(
        "walk",
        12,
        "hip_flex.L 26, knee.L 6, ankle.L 4, hip_flex.R -14, knee.R 12, ankle.R -12, shoulder_flex.L -20, "
        "shoulder_flex.R 20, elbow 22, spine_twist 8, spine_bend 3",
        "hip_flex.L 4, knee.L 8, hip_flex.R 22, knee.R 58, ankle.R 2, shoulder_flex.L 2, shoulder_flex.R 2, "
        "spine_twist 0",
    ),
    Entry(
        "run",
        7,
        "hip_flex.L 62, knee.L 85, ankle.L 5, hip_flex.R -18, knee.R 22, ankle.R -30, shoulder_flex.L -42, "
        "shoulder_flex.R 36, elbow 92, spine_bend 10, spine_twist 14, curl 45, shoulder_twist -15",
        "hip_flex.L 28, knee.L 22, hip_flex.R 2, knee.R 105, ankle.R -12, shoulder_flex.L -18, "
        "shoulder_flex.R 10, spine_twist 4",
    ),
    Entry(
        "climb a step",
        4,
        "hip_flex.L 45, knee.L 50, spine_bend 6",
        "hip_flex.L 88, knee.L 95, spine_bend 18, ankle.R -15, ankle.L 8",
    ),
    Entry(
        "sit on a chair",
        10,
        "hip_flex 84, knee 88, hip_abduct 8, shoulder_flex 28, elbow 60, shoulder_twist -20",
        "hip_flex 92, knee 62, hip_abduct 16, spine_bend 24, shoulder_flex 46, elbow 40",
    ),
    Entry(
        "sit with crossed legs",
        4,
        "hip_flex.L 98, hip_abduct.L -12, hip_twist.L 12, knee.L 72, hip_flex.R 84, knee.R 88, shoulder_flex "
        "30, elbow 62, shoulder_twist -25, hip_abduct.R 2",
        "hip_twist.L 45, hip_abduct.L 14, knee.L 105, spine_bend 10",
    ),
    Entry(
        "sit on the floor, legs out",
        4,
        "hip_flex 88, knee 6, hip_abduct 6, shoulder_flex -28, elbow 10, spine_bend 10",
        "hip_flex 94, knee.L 60, hip_flex.L 112, spine_bend 32, shoulder_flex 40, elbow 25",
    ),
    Entry(
        "sit cross-legged",
        4,
        "hip_flex 92, hip_abduct 36, hip_twist 45, knee 120, spine_bend 12, elbow 55",
        "hip_flex 100, knee 132, hip_abduct 42, spine_bend 28, shoulder_flex 38, ankle -20",
    ),
    Entry(
        "hug the knees",
        2,
        "hip_flex 112, knee 118, spine_bend 34, shoulder_flex 68, elbow 42, shoulder_twist -35",
        "hip_flex 118, knee 134, spine_bend 46, neck_bend 22, elbow 60",
    ),
    Entry(
        "squat",
        7,
        "hip_flex 45, knee 60, ankle 18, hip_abduct 12, spine_bend 14",
        "hip_flex 112, knee 138, ankle 22, hip_abduct 22, spine_bend 34, shoulder_flex 60",
    ),
    Entry(
        "kneel on both knees",
        4,
        "knee 92, ankle -40, hip_flex 2, hip_abduct 8",
        "knee 142, ankle -42, hip_flex 62, spine_bend 14, shoulder_flex 24, elbow 40",
    ),
    Entry(
        "kneel on one knee",
        5,
        "hip_flex.L 84, knee.L 88, hip_flex.R 2, knee.R 88, ankle.R -15, spine_bend 6",
        "hip_flex.L 104, knee.L 116, hip_flex.R -8, knee.R 104, spine_bend 26, ankle.R 10",
    ),
    Entry(
        "bend down",
        6,
        "hip_flex 28, spine_bend 26, knee 8, shoulder_flex 45",
        "hip_flex 82, spine_bend 62, knee 34, shoulder_flex 100, neck_bend -12, elbow 12",
    ),
    Entry(
        "lunge",
        6,
        "hip_flex.L 46, knee.L 46, hip_flex.R -16, knee.R 12, ankle.R -5, ankle.L 6",
        "hip_flex.L 92, knee.L 92, hip_flex.R -22, knee.R 46, spine_bend 12, ankle.R 12",
    ),
    Entry(
        "side lunge",
        3,
        "hip_abduct.L 24, hip_abduct.R 22, knee.L 35, hip_flex.L 30, spine_bend 8",
        "hip_abduct.R 44, hip_flex.L 78, knee.L 98, hip_twist.L 30, spine_bend 24, ankle.L 15",
    ),
    Entry(
        "kick",
        4,
        "hip_flex.L -20, knee.L 72, spine_bend 10, shoulder_abduct 35, shoulder_flex.R 25",
        "hip_flex.L 96, knee.L 12, spine_bend -6, ankle.L -20, shoulder_flex.R 50, knee.R 14",
    ),
    Entry(
        "stand on one leg",
        3,
        "hip_flex.L 62, knee.L 90, shoulder_abduct 40",
        "hip_flex.L 70, hip_abduct.L 42, hip_twist.L 50, knee.L 128, shoulder_abduct 85",
    ),
    Entry(
        "arabesque",
        2,
        "hip_flex.L -22, spine_bend 18, hip_flex.R 25, shoulder_abduct 70, knee.L 10",
        "hip_flex.R 70, hip_flex.L -25, spine_bend 10, neck_bend -25, shoulder_flex.R 120",
    ),
    Entry(
        "dance",
        5,
        "hip_flex.L 30, knee.L 55, hip_twist.L 35, spine_side 12, knee.R 18, hip_flex.R 12",
        "hip_abduct.L 32, spine_side -16, spine_twist 22, knee.R 35, hip_twist.R 25, hip_flex.R 25",
    ),
    Entry(
        "jump",
        3,
        "hip_flex -8, knee 18, ankle -38, shoulder_flex 140, spine_bend -8",
        "hip_flex 60, knee 98, ankle -20, shoulder_abduct 75, spine_bend 12, shoulder_flex 40",
    ),
    Entry(
        "lean and twist",
        5,
        "spine_twist 22, neck_twist 25, hip_flex 5",
        "spine_twist 36, spine_side 16, neck_twist 40, spine_bend 12, knee.L 20, hip_flex.L 14",
    ),
    Entry(
        "lie stretched out",
        3,
        "hip_flex 2, knee 5, ankle -28, hip_abduct 6",
        "hip_flex.L 46, knee.L 88, hip_abduct.L 20, shoulder_abduct 60, elbow 60, neck_bend 14",
    ),
    Entry(
        "lie curled up",
        2,
        "hip_flex 55, knee 75, spine_bend 24, shoulder_flex 60, elbow 90, ankle -25",
        "hip_flex 105, knee 122, spine_bend 44, neck_bend 20, shoulder_flex 78, elbow 112",
    ),
)

#: Both arms; drawn in place of those of the stance.
GESTURES = (
    Entry("hang", 10, "", "shoulder_abduct 16, elbow 24"),
    Entry(
        "hands on hips",
        7,
        "shoulder_abduct 42, shoulder_flex -16, shoulder_twist -52, elbow 84, wrist_bend -10",
        "shoulder_abduct 52, shoulder_flex -8, elbow 98, forearm_twist -25",
    ),
    Entry(
        "one hand on the hip",
        4,
        "shoulder_abduct.L 46, shoulder_flex.L -14, shoulder_twist.L -52, elbow.L 90",
        "elbow.L 100, shoulder_abduct.L 52",
    ),
    Entry(
        "arms crossed",
        6,
        "shoulder_flex.L 30, shoulder_flex.R 38, shoulder_abduct 6, shoulder_twist -52, elbow.L 96, elbow.R "
        "108, forearm_twist -30",
        "shoulder_flex.L 38, shoulder_flex.R 48, elbow.L 108, elbow.R 118, shoulder_abduct 12",
    ),
    Entry(
        "hands behind the back",
        3,
        "shoulder_flex -28, shoulder_twist -42, elbow 38, shoulder_abduct 12",
        "shoulder_flex -34, shoulder_twist -62, elbow 66",
    ),
    Entry(
        "hands together in front",
        6,
        "shoulder_flex 10, shoulder_twist -44, elbow 42, shoulder_abduct 8",
        "shoulder_flex 34, shoulder_twist -42, elbow 102, curl 30",
    ),
    Entry(
        "carry",
        5,
        "shoulder_flex 12, elbow 88, forearm_twist 60, curl 35",
        "shoulder_flex 48, elbow 66, shoulder_twist -14, forearm_twist 20",
    ),
    Entry(
        "reach forward",
        6,
        "shoulder_flex.L 55, elbow.L 42",
        "shoulder_flex.L 98, elbow.L 8, shoulder_abduct.L 4, spine_twist -8",
    ),
    Entry(
        "both arms forward",
        4,
        "shoulder_flex 62, elbow 50, forearm_twist -30",
        "shoulder_flex 98, elbow 8, shoulder_abduct 6",
    ),
    Entry(
        "point aside",
        4,
        "shoulder_abduct.L 62, elbow.L 20, shoulder_flex.L 20",
        "shoulder_abduct.L 100, elbow.L 5, curl.L 40",
    ),
    Entry("arms spread", 5, "shoulder_abduct 52, elbow 30", "shoulder_abduct 98, elbow 6, shoulder_twist 25"),
    Entry(
        "raise one arm",
        5,
        "shoulder_flex.L 130, elbow.L 30, shoulder_abduct.L 20",
        "shoulder_flex.L 168, elbow.L 8, shoulder_abduct.L 12",
    ),
    Entry(
        "raise both arms",
        6,
        "shoulder_abduct 120, elbow 40, shoulder_flex 30, shoulder_twist 30",
        "shoulder_abduct 150, elbow 10, shoulder_flex 50",
    ),
    Entry(
        "wave",
        6,
        "shoulder_abduct.L 62, shoulder_twist.L 68, elbow.L 105, shoulder_flex.L 12, curl.L 4",
        "shoulder_abduct.L 95, elbow.L 62, wrist_bend.L -20",
    ),
    Entry(
        "phone to the ear",
        5,
        "shoulder_flex.L 48, shoulder_abduct.L 32, elbow.L 138, curl.L 50, shoulder_twist.L 12",
        "shoulder_flex.L 30, shoulder_abduct.L 42, elbow.L 143, neck_side 8, shoulder_twist.L 26",
    ),
    Entry(
        "hand to the face",
        5,
        "shoulder_flex.L 44, elbow.L 132, shoulder_twist.L -18, curl.L 35",
        "shoulder_flex.L 68, elbow.L 130, shoulder_twist.L -10",
    ),
    Entry(
        "hands behind the head",
        3,
        "shoulder_abduct 112, shoulder_flex 30, shoulder_twist 46, elbow 128",
        "shoulder_abduct 125, shoulder_flex 42, elbow 138",
    ),
    Entry(
        "throw",
        4,
        "shoulder_abduct.L 92, shoulder_twist.L 76, elbow.L 98, shoulder_flex.R 62, spine_twist 22",
        "shoulder_flex.L 112, shoulder_abduct.L 25, elbow.L 18, spine_twist -28, shoulder_flex.R -12",
    ),
    Entry(
        "look at the phone",
        5,
        "shoulder_flex.L 26, elbow.L 102, shoulder_twist.L -22, neck_bend 20, curl.L 40",
        "shoulder_flex.R 28, elbow.R 102, shoulder_twist.R -26, neck_bend 28, shoulder_twist.L -26",
    ),
    Entry(
        "guard",
        3,
        "shoulder_flex 42, elbow 122, shoulder_twist -8, curl 65",
        "shoulder_flex.L 86, elbow.L 22, curl 65, spine_twist -20",
    ),
    Entry(
        "swing a racket",
        3,
        "shoulder_flex.L -40, shoulder_abduct.L 50, spine_twist 30, elbow.L 35, curl.L 60",
        "shoulder_flex.L 95, shoulder_abduct.L -15, spine_twist -28, elbow.L 60",
    ),
)
