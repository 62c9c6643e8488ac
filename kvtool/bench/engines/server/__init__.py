"""A server that somebody already runs, measured by its URL: traffic out, times and counts in. Imports no tensors."""
