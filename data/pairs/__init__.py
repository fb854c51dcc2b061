"""Pairs of a source and a target text: generated ones, and files."""
