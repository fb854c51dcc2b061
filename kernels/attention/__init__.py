"""Attention: the function and its operators, the Triton kernels, and a version in plain torch."""
