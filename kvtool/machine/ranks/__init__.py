"""Processes that run one model together: who has what, what they tell each other, and what becomes of one that dies."""
