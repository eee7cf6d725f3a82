"""Training of the demo model: the parts of scripts/train_demo.py."""
