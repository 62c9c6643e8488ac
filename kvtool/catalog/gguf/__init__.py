"""A .gguf file: its metadata, its tensors, and the model that they describe."""
