"""The operator: what it computes, its settings, and its faces in PyTorch and CUDA."""
