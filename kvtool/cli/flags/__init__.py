"""The options of the commands in groups, a file each: an option is a field of its group."""
