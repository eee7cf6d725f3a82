"""A transformer as an engine beside eager PyTorch: what the engine benchmarks share."""
