"""The machine at hand: devices, memory, clocks, load, and the limits that were measured on it."""
