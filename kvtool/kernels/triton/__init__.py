"""The Triton kernels: launchers with all checks here, `@triton.jit` code in jit/, the choice of tiles in tiles/."""
