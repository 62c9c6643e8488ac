"""Where a decoder's tensors come from: drawn at random, a safetensors folder, or a GGUF file. All under HF's names."""
