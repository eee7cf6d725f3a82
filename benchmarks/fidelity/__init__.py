"""The fidelity study: how much of the dense video sparse attention keeps (docs/fidelity.md)."""
