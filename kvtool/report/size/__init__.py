"""The report of `kvtool size`: rows, answers, a card's memory, an engine's plan."""
