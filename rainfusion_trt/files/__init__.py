"""How this package writes: targets checked first, nothing half-done, nothing of others replaced."""
