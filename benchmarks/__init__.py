"""Benchmarks and their results. They run from a checkout and are no part of the wheel."""
