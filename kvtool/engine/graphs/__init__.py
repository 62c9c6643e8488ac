"""A whole decode step as a CUDA graph: recorded once a batch size, replayed one step ahead."""
