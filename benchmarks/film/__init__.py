"""Which rule of sparse attention keeps the picture, on a model trained on film."""
