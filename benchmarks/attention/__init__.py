"""Benchmark of attention, for scripts/bench_attention.py."""
