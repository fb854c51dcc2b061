"""CPU time of a step of our Muon beside torch's, on the hidden matrices of two Transformers.

    python -m bench.muon [--turns 20]

Both step on copies of the same matrices with the same random gradients, in turns, in one process on one thread. A row
for each shape, and one for all of a model's together: medians over the turns, and the median of the turns' ratios.
ONEDNN_MAX_CPU_ISA=AVX512_CORE shows a CPU that has no instructions for bfloat16, which torch's iterates in.
"""

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from engine.config.flags import parse
from engine.registry import build_model
from engine.training.optimizers import Muon, make_optimizers

MODELS = {
    "--data shakespeare": ["--data", "shakespeare"],
    "6 layers, 384 wide": ["--n-layer", "6", "--n-head", "6", "--n-embd", "384"],
}
VOCABULARY = 71


def hidden_matrices(flags: list[str]) -> list[Tensor]:
    """The matrices that Muon takes of the Transformer with these flags."""
    config, _ = parse(["--model", "transformer", *flags])
    muon = make_optimizers(build_model(config, VOCABULARY), config.optim)[0]
    return [p.detach() for group in muon.param_groups for p in group["params"]]


def seconds(matrices: list[Tensor], turns: int) -> list[tuple[float, ...]]:
    """Of each turn, the CPU seconds of our step and of torch's."""
    ours, theirs = ([nn.Parameter(p.clone()) for p in matrices] for _ in range(2))
    options: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.01}
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    taken = []
    for _ in range(turns + 1):  # the first warms up
        turn = []
        for optimizer in optimizers:
            started = time.process_time()
            optimizer.step()
            turn.append(time.process_time() - started)
        taken.append(tuple(turn))
    return taken[1:]


def report(model: str, flags: list[str], turns: int) -> None:
    """Print the rows of one model."""
    of_shape: dict[str, list[Tensor]] = defaultdict(list)
    for p in hidden_matrices(flags):
        of_shape["x".join(map(str, p.shape))].append(p)
    everything = [p for some in of_shape.values() for p in some]
    rows = {f"{len(some)} of {shape}": some for shape, some in of_shape.items()} | {"all": everything}
    for name, matrices in rows.items():
        taken = seconds(matrices, turns)
        ours, theirs = (1000 * statistics.median(column) for column in zip(*taken, strict=True))
        ratio = statistics.median(a / b for a, b in taken)
        print(f"| {model} | {name} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.muon", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; milliseconds of CPU time a step")
    print("| model | matrices | ours | torch's | ours / torch's |\n|---|---|---|---|---|")
    for model, flags in MODELS.items():
        report(model, flags, args.turns)


if __name__ == "__main__":
    main()
