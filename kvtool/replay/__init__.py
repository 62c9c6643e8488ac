"""Replay a trace through a prefix cache: what any capacity and policy would have hit, and what bounds them all."""
