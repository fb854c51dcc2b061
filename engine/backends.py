"""Whether the kernels that `--attention` and `--norm-kernel` ask for can run here, said before anything starts."""

import torch

import kernels
from data.errors import UserError
from engine.config.checks import flag
from engine.config.sections import BACKENDS, Config


def check_backends(config: Config, device: torch.device) -> None:
    """Raise UserError, with the reason and the way out, for a choice of "triton" that cannot be honoured."""
    for name in BACKENDS:
        if getattr(config, name) != "triton":
            continue
        if reason := kernels.why_not(device):
            raise UserError(
                f"{flag(name)} triton: the Triton kernels cannot run here: {reason}; use {flag(name)} torch"
            )
    if config.model == "transformer" and config.attention == "triton":
        head_size = config.n_embd // config.n_head
        if head_size > kernels.MAX_HEAD_SIZE:
            raise UserError(
                f"--attention triton takes heads of at most {kernels.MAX_HEAD_SIZE}, and --n-embd {config.n_embd} / "
                f"--n-head {config.n_head} is {head_size}; raise --n-head, or use --attention torch"
            )
    if config.norm_kernel == "triton" and config.norm not in ("layer", "rms"):
        raise UserError(f"--norm-kernel triton has layer and rms norm, not --norm {config.norm}; leave it out")
