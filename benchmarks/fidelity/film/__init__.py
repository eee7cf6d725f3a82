"""What sparse attention does to the model that was trained on film, at equal densities."""
