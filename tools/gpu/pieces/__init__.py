"""What runs on the card, each in a process of its own. Nothing outside this folder imports torch."""
