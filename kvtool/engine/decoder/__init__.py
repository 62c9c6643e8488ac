"""One small decoder for all families: what differs is in the catalogue's `Model`, not in classes of its own."""
