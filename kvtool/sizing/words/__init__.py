"""A size in words: what it was worked out from, what it hangs on, what would make it fit, the formula."""
