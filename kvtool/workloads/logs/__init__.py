"""Logs of requests as gateways keep them, with the text itself: read, laid out as prompts, cut into blocks."""
