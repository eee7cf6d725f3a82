"""The README's one command: every step of the project, on a small model trained on a real clip."""
