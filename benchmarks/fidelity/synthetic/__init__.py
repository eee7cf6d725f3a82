"""Made-up heads whose need of keys follows published profiles, at the grids of those models."""
