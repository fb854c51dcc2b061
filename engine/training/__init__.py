"""The training loop and its parts. It knows models by their contract alone, no family and no registry."""
