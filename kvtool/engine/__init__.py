"""Runs requests: the scheduler says what, the decoder computes it, `Engine.step` is schedule, run, postprocess."""
