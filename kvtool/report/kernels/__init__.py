"""The report of `kvtool kernels`."""
