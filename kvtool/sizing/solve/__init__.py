"""The inverse question: which layout, dtype and engine serve so many users, and the command that starts them."""
