"""The Transformer. Stands on makemore (the contract, the layers) and on kernels."""
