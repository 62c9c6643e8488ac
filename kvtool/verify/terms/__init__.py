"""The numbers of each engine's log beside what its plan makes of the same start."""
