"""Benchmarks of our commands and the peers', side by side in one run. The suite imports nothing from here."""
