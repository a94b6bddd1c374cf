"""What the tokenizer and MEGA share: files on disk, weights, processes that train together."""
