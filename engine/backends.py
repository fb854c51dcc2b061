"""Whether the kernels that `--attention` and `--norm-kernel` ask for can run here, said before anything starts."""

import torch

import kernels
from data.errors import UserError, flag
from engine.config.sections import Config
from engine.config.settings import marked
from makemore.config import Mark


def check_backends(config: Config, device: torch.device) -> None:
    """Raise UserError, with the reason and the way out, for a choice of "triton" that cannot be honoured."""
    net = config.net
    for name in sorted(marked(Config, Mark.BACKEND)):
        if getattr(net, name, None) != "triton":
            continue
        if reason := kernels.why_not(device):
            raise UserError(
                f"{flag(name)} triton: the Triton kernels cannot run here: {reason}; use {flag(name)} torch"
            )
    if getattr(net, "attention", None) == "triton":
        head_size = net.n_embd // net.n_head
        if head_size > kernels.MAX_HEAD_SIZE:
            raise UserError(
                f"--attention triton takes heads of at most {kernels.MAX_HEAD_SIZE}, and --n-embd {net.n_embd} / "
                f"--n-head {net.n_head} is {head_size}; raise --n-head, or use --attention torch"
            )
    if getattr(net, "norm_kernel", None) == "triton" and net.norm not in ("layer", "rms"):
        raise UserError(f"--norm-kernel triton has layer and rms norm, not --norm {net.norm}; leave it out")
