"""Other people's whole engines on our weights and prompts, one module each."""
