"""Benchmarks: our commands beside the peers', in one run. Nothing here is imported by the suite."""
