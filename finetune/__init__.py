"""Fine-tuning: classification."""
