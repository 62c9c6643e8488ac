"""The questions, a module each: the situation in, a decision out."""
