"""Runs cases on the engine and measures them next to the device's own limits. Results out, nothing printed."""
