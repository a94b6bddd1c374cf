"""Training: losses, Lightning modules, callbacks, and what the three training scripts share."""
