"""Fine-tuning a model to follow instructions."""
