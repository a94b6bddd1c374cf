"""Drawing bodies: a ray caster, soft shading, overlays and panels."""

from mega.rendering.panels import draw_uncertainty, panel
from mega.rendering.people import draw_body, draw_people, draw_side_view, far_camera, people_openness
from mega.rendering.raycast import cast, merge_meshes

__all__ = [
    "cast",
    "draw_body",
    "draw_people",
    "draw_side_view",
    "draw_uncertainty",
    "far_camera",
    "merge_meshes",
    "panel",
    "people_openness",
]
