"""Traces that kvtool makes itself: who shares which prefix with whom, without a token being drawn."""
