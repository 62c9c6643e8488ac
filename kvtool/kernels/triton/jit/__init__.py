"""Only `@triton.jit` code: no checks, no torch. Shapes and dtypes are checked by the launchers, one folder up.

Signatures are grouped by hand (pointers, numbers, strides, constants), so the formatter leaves this folder alone.
"""
