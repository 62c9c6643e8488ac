"""The parts of a benchmark, one file each."""
