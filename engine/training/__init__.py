"""The training loop and its parts. Knows models by their contract alone: no family, no registry."""
