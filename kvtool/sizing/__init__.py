"""The arithmetic of a KV cache: what a layer keeps and reads, what a batch takes, what fits a card."""
