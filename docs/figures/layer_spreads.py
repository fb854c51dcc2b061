"""How much a unit varies, by layer, before and after training: `python -m docs.figures.layer_spreads RUN ...` of six
MLPs."""

from matplotlib.axes import Axes

from docs import figures, units
from makemore.mlp import MLP


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=6)
    figure = figures.new(7, 4.4)
    first, after = figure.subplots(1, 2, sharey=True)
    for i, folder in enumerate(folders):
        run = units.load_mlp(folder)
        net = run.config.net
        style = {"color": f"C{i}", "marker": "o^s"[i % 3], "markersize": 4, "linestyle": "--" if i > 2 else "-"}
        style["label"] = f"norm {net.norm}, weights {net.weight_init}"
        draw(first, run, units.initial(run), style)
        draw(after, run, run.model, style)
    first.set(
        title="before training",
        xlabel="hidden layer",
        ylabel="standard deviation of a unit over the text",
        yscale="log",
    )
    after.set(title="after training", xlabel="hidden layer")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figures.save(figure, out)


def draw(axes: Axes, run: units.Run, model, style: dict) -> None:
    """A line of the spreads of the units of `model`, which is one for the text of `run`."""
    assert isinstance(model, MLP)
    spreads = [units.spread(model, z) for z in units.before_activation(run, model)]
    axes.plot(range(1, len(spreads) + 1), spreads, **style)


if __name__ == "__main__":
    figures.run(main)
