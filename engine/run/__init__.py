"""Runs on disk and in memory: the directory and its checkpoints, loading one, samples and scores of it."""
