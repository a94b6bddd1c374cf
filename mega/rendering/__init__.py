"""Drawing bodies: a ray caster, soft shading, overlays and panels."""

from mega.rendering.raycast import Hits, cast, merge_meshes

__all__ = ["Hits", "cast", "merge_meshes"]
