"""What the hidden units of an MLP do on the validation text: `python -m docs.units RUN [--initial]`.

Prints for each hidden layer the spread of its units, and the share of them that are dead: whose activation has the
derivative 0 at every position of the text, so that no gradient reaches the weights below.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from data.batches import IGNORE
from data.errors import UserError, run_command
from data.eval_batches import eval_batches
from engine.registry import build_model
from engine.run.folder import read_facts
from engine.run.load import load_run
from engine.run.run import Run
from engine.texts import store_of_run
from makemore.mlp import MLP


def load_mlp(folder: Path) -> Run:
    """The run in this folder. Raises UserError where its model is no MLP."""
    run = load_run(folder, device="cpu")
    if not isinstance(run.model, MLP):
        raise UserError(f"{folder} is a {run.config.model}; the hidden units are those of --model mlp")
    return run


def before_activation(run: Run, model: MLP | None = None) -> list[Tensor]:
    """What the activation of each hidden layer reads, (N, n_hidden), N being the positions of the validation text that
    have a target; of the model of `run`, or of another one for the same text, in the mode that it is in."""
    model, config = model or run.model, run.config  # type: ignore[assignment]  # `load_mlp` has seen that it is an MLP
    assert isinstance(model, MLP) and config.net.context is not None
    store = store_of_run(config, read_facts(run.folder), run.tokenizer)
    heard: list[list[Tensor]] = [[] for _ in model.norms]
    valid = torch.empty(0)

    def listen(parts: list[Tensor]):
        return lambda module, arguments, z: parts.append(z[valid])

    hooks = [norm.register_forward_hook(listen(parts)) for norm, parts in zip(model.norms, heard, strict=True)]
    with torch.no_grad():
        for batch in eval_batches(store.val, config.net.context, config.text.eval_tokens)():
            here = batch.to(run.device)
            valid = here.targets != IGNORE
            model.hidden(here.tokens, None, valid)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in heard]


def initial(run: Run) -> MLP:
    """The model of `run` with the weights that its training began with, in training mode: batch norm has measured
    nothing yet."""
    torch.manual_seed(run.config.run.seed)
    model = build_model(run.config, run.tokenizer.vocab_size, run.tokenizer.special)
    assert isinstance(model, MLP)
    return model.train()


def spread(model: MLP, z: Tensor) -> float:
    """The standard deviation of a unit's activation over the positions of z (N, n_hidden), in the mean over the units:
    what differs between the positions, not what biases add to all of them."""
    return float(model.activation(z).std(0, correction=0).mean())


def dead(model: MLP, z: Tensor) -> Tensor:
    """Which units (n_hidden,) have an activation whose derivative is 0 at all of z (N, n_hidden)."""
    z = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.activation(z).sum(), z)
    return (slope == 0).all(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.units", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--initial", action="store_true", help="with the weights that its training began with")
    args = parser.parse_args()
    run = load_mlp(args.run)
    model = initial(run) if args.initial else run.model
    assert isinstance(model, MLP)
    print("layer   spread  dead units")
    shares = []
    for i, z in enumerate(before_activation(run, model), 1):
        shares.append(dead(model, z).float().mean())
        print(f"{i:5}  {spread(model, z):7.2g}  {shares[-1]:10.3f}")
    print(f"share of dead units in all layers: {torch.stack(shares).mean():.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
