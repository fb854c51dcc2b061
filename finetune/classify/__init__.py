"""Fine-tuning a model into a classifier of texts."""
