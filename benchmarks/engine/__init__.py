"""Benchmarks of engines against eager PyTorch."""
