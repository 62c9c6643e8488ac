"""The attention kernels alone, over contexts and batch sizes."""
