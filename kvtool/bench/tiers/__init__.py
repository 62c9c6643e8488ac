"""The tiers of this machine, measured: host memory and a disk, with the sizes of a model's pages."""
