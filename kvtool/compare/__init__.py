"""Results against results: which cases belong together, how sure a difference is, and what to call it."""
