"""How fast the service itself is, with a worker that computes nothing."""
