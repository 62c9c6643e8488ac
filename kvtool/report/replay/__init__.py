"""The report of `kvtool replay`."""
