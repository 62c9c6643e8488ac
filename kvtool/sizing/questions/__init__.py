"""What is asked beside a size: requests of real lengths at once, a shared prefix, tiers of memory."""
