"""Layer norm and RMS norm: the operator, its Triton kernels, and a plain version."""
