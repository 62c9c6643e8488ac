"""Why prefixes do not hit: what was evicted, what stands behind another prefix, and what in a text keeps it from it."""
