"""What serving engines allocate for a model, as their own planners would decide it: one module or folder an engine."""
