"""What measures and what writes the results: run from a checkout, not part of the wheel."""
