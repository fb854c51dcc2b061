"""Tokens of a few rows through a small model in one call, in C: for CPUs, where a compiler is."""
