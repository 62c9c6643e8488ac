"""A server that somebody already runs: how it is asked over HTTP, and what it says of itself. Knows no tensors."""
