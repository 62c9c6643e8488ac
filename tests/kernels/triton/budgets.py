"""What a compiled kernel may cost, by compute capability. Every variant is checked, without a GPU."""

from __future__ import annotations

# Shared memory that one program may use (CUDA C++ Programming Guide, table of technical specifications).
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}

LOCAL_BYTES = 0  # of a thread's local memory: nothing spills out of the registers

# Tiles of K and V in flight while one is in use: with fewer, decode waits for each load in turn.
MIN_DECODE_BUFFERS = 2

# Tiles of a weight in flight in a product.
MIN_PRODUCT_BUFFERS = 2

# Decode programs of heads of 128 that one multiprocessor must hold: what `configs` sizes the splits by.
RESIDENT_DECODES = {80: 2, 89: 1, 90: 3, 100: 3}

# From these rows on, Hopper's matrix instruction (wgmma) must be in the code of a 16-bit prefill, and of a product.
WGMMA_ROWS = 64
