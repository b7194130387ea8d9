"""Benchmarks beside other projects' networks, run from a checkout."""
