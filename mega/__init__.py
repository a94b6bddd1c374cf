"""MEGA: a masked generative autoencoder for human mesh recovery."""
