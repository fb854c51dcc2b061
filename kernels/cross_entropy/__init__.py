"""Cross-entropy, of logits and of a linear layer: the operators, their Triton kernels, and plain versions."""
