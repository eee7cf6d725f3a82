"""Training of the demo model, for scripts/train_demo.py."""
