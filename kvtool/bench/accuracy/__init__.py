"""What a smaller cache costs: a text through each format beside the run's own, by token and by layer."""
