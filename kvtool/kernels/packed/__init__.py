"""Caches whose vectors are packed bits: written and read by torch on the CPU, whatever the format."""
