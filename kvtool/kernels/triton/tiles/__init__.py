"""Which tile a launch takes: rules by shape, what was timed on a card, and products chosen by a verdict."""
