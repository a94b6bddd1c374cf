"""Shared by the tokenizer and MEGA: files on disk, weights, devices, training with several processes."""
