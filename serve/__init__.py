"""Runs over HTTP: as OpenAI's API has it; python -m serve."""
