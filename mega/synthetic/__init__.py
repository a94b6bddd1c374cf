"""Posed and dressed bodies in scenes, rendered into annotated pictures."""
