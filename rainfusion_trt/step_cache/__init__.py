"""Steps that need not run: a cache at the border of the transformer (docs/caching.md)."""
