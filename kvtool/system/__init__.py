"""What kvtool asks of the operating system (files, signals, encodings, a compiler for its C), and its own errors."""
