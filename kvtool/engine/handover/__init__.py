"""Prefill and decode apart: engines in processes of their own, and pages that one hands to the other."""
