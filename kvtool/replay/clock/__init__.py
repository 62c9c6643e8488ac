"""A virtual clock: events in order, and bytes that flow through links which they share."""
