"""Results in; tables, sentences, CSV, PNG and HTML out. A report measures nothing and computes no sizes."""
