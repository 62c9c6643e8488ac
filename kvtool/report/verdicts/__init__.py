"""Documents that answer in words: a prediction that held or not, and what to do."""
