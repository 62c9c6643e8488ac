"""Start-up logs and metrics of serving engines beside what kvtool predicts for the same start, term by term."""
