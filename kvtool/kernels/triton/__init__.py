"""Only `@triton.jit` code: no checks, no torch. Shapes and dtypes are checked by the launchers, one folder up."""
