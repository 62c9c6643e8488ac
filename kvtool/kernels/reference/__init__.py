"""The obvious torch twin of every kernel: read these first."""
