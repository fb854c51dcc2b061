"""Cross-entropy of logits and of a linear layer: functions, operators, Triton kernels, and plain torch."""
