"""What to do with a KV cache: a question at a time, each answered by a number beside the one it is held against."""
