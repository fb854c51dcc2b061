"""Attention: the operator, its Triton kernels, and a plain version."""
