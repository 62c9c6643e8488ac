"""A tiers document out."""
