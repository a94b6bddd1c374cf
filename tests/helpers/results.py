"""Results of an evaluation that nobody made: random errors of a body of three joints."""

import numpy as np
import trimesh

from mega.evaluation.statistics import METRICS, Results

JOINTS = ("nose", "left_wrist", "right_wrist")
SAMPLED = ("best_of_1", "best_of_5", "best_of_25", "mean_of_1", "mean_of_5", "mean_of_25", "likeliest_of_25")
BODY = trimesh.creation.icosphere(2, 0.9)
TEMPLATE, FACES = np.asarray(BODY.vertices, np.float32) * [0.3, 1, 0.2], np.asarray(BODY.faces)


def made_up(people: int, sampled: bool, seed: int = 0) -> Results:
    random = np.random.default_rng(seed)
    variants = ("deterministic", *(SAMPLED if sampled else ()))
    columns = {
        f"{v}/{p}/{m}": random.gamma(4, 30, people) for v in variants for p in ("coco17", "hips") for m in METRICS
    }
    columns["deterministic/2d/keypoints"] = random.gamma(4, 2, people)
    if sampled:
        columns |= {"spread/apd": random.gamma(4, 10, people), "spread/std": random.gamma(4, 8, people)}
    by_vertex = 100 * np.abs(TEMPLATE[:, 1])
    return Results(
        images=np.array([f"{i}.jpg" for i in range(people)]),
        persons=np.zeros(people, int),
        columns=columns,
        joint_names=JOINTS,
        joint_error=random.gamma(4, 20, (people, 3)),
        joint_spread=random.gamma(4, 10, (people, 3)) if sampled else None,
        joint_visible=random.random((people, 3)) > 0.3,
        vertex_error=by_vertex,
        vertex_spread=by_vertex / 2 if sampled else None,
    )
