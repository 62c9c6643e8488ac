"""A model run by several ranks: the first schedules and samples as ever, all of them compute its steps."""
