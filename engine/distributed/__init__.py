"""Several processes of one training: the only folder that knows torch.distributed."""
