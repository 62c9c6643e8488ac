"""The commands that show what is known: models and cards."""
