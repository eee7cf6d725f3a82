"""One clip on several GPUs."""
