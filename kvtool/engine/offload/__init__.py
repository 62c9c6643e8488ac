"""Pages that leave the block pool: host memory and files below it, and their way back."""
