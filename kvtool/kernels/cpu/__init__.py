"""The kernels on a CPU: torch and, where gcc is, C."""
