"""Small models on CPUs, in C, where a compiler is: a token of a few rows in one call, and parts of a training step."""
