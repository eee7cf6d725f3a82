"""Backends that run an exported transformer, and what drives them inside a diffusers pipeline."""
