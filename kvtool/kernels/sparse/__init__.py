"""Caches that attention reads in part: StreamingLLM's, and Quest's."""
