"""Which cached pages go first when room is needed: policies of a few lines, chosen by name."""
