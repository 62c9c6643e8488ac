"""What kvtool asks of the operating system besides files: signals, and a compiler for its C."""
