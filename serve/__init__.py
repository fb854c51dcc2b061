"""Runs over HTTP: OpenAI's API and a page; python -m serve."""
