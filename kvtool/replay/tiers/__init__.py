"""Tiers below a cache in the GPU's memory: what they hold, how fast they give it back, and when computing is faster."""
