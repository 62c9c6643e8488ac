"""What different allocators make of the same requests, counted: no model runs, only tokens and their bytes."""
