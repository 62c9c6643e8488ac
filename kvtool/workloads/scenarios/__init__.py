"""Named traffic: a file a scenario, each of which knows what of its prompts a cache can find."""
