"""Kills, double starts, torn files and errors of the disk, at random: python -m bench.chaos."""
