"""kvtool: what the KV cache of a language model costs, how fast it can go, and what would make it cheaper."""

__version__ = "0.2.0"
