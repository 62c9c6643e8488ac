"""The loops of a replay, in C and in Python: both give the same numbers."""
