"""A model run by several ranks: the first schedules and samples as ever, the others compute their parts of its steps."""
