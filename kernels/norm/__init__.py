"""Layer norm and RMS norm: the functions and their operators, the Triton kernels, and plain torch."""
