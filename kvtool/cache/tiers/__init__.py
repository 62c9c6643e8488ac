"""What lies below the block pool: which page is in which tier, what may go, and when pages move down. No bytes here."""
