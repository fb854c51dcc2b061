"""Fine-tuning: classification and instruction following."""
