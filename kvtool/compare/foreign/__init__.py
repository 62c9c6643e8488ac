"""What other load generators write, as documents of ours: metrics under our definitions, or refused by name."""
