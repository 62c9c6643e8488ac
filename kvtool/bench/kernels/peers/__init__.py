"""Other people's attention kernels on our pages, one module each."""
