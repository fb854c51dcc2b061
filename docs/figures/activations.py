"""Activations, their derivatives, and the dead units of two ReLU runs: `python -m docs.figures.activations RUN RUN`."""

import torch

from docs import figures, units
from makemore.layers import ACTIVATIONS


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=2)
    figure = figures.new(7, 6.6)
    axes = figure.subplot_mosaic([["value", "derivative"], ["dead", "dead"]], height_ratios=[3, 2])
    for i, (name, activation) in enumerate(ACTIVATIONS.items()):
        x = torch.linspace(-4, 4, 321, dtype=torch.float64, requires_grad=True)
        y = activation(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        style = {"color": f"C{i}", "linestyle": "--" if name in ("leaky_relu", "gelu_tanh") else "-", "label": name}
        axes["value"].plot(x.detach(), y.detach(), **style)
        axes["derivative"].plot(x.detach(), slope, **style)
    axes["value"].set(title="activation", xlabel="z", ylim=(-1.2, 3))
    axes["derivative"].set(title="its derivative", xlabel="z", ylim=(-0.3, 2))
    axes["value"].legend(fontsize=8, loc="upper left")
    for i, folder in enumerate(folders):
        run = units.load_mlp(folder)
        shares = [float(units.dead(run.model, z).float().mean()) for z in units.before_activation(run)]  # type: ignore[arg-type]  # load_mlp's
        places = [n + 0.4 * (i - 0.5) for n in range(1, len(shares) + 1)]
        drawn = axes["dead"].bar(places, shares, 0.38, color=f"C{i}", label=f"learning rate {run.config.optim.lr:g}")
        axes["dead"].bar_label(drawn, fmt="%.2f", fontsize=8)
    axes["dead"].set(title="dead units after training with relu", xlabel="hidden layer", ylabel="share", ylim=(0, 1.1))
    axes["dead"].set_xticks(range(1, len(shares) + 1))
    axes["dead"].legend(fontsize=8, loc="upper left")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
