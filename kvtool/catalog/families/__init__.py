"""How to read each architecture's config.json: one reader a shape of attention, and the registry that names them."""
