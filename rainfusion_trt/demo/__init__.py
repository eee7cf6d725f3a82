"""The README's one command: every step of the project on a tiny model with random weights."""
