"""How fast work can be: the bytes that it moves, the FLOPs that it does, and the roofline over both."""
