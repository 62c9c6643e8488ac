"""How quantised checkpoints store their weights: what a config says of it, and of each part of a model."""
