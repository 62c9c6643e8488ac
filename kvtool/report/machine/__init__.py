"""What a machine is, and what its tiers move."""
