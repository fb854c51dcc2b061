"""Random kills, double starts, torn files and disk errors: python -m bench.chaos."""
