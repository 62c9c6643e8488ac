"""The lines of each engine that say what it allocated: a table of patterns a file, and its flags."""
