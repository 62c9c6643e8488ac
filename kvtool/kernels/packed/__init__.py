"""Caches whose vectors are packed bits: written and read by torch, whatever the format."""
