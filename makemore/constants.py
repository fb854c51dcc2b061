"""Numbers that models are built with, and that what reads or writes their weights elsewhere has to know. No torch."""

INIT_STD = 0.02  # of the normal distribution that weights are drawn from; GPT-2's initializer_range
NORM_EPS = 1e-5  # added to the variance by layer and batch norm; GPT-2's layer_norm_epsilon
ROPE_BASE = 10000.0  # of the wavelengths of RoPE and of sinusoidal positions; Llama's rope_theta
IMPROBABLE = -10.0  # the initial bias of the specials that are never predicted
MAX_DILATION = 512  # of the CNN's layers, as in the paper: the next layer's is 1 again
