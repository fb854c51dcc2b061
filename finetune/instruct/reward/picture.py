"""The picture of a run that learns from rewards: reward, distinct answers and distance from the start, over steps."""

from pathlib import Path

from engine.run.results import write_picture
from engine.training.metrics import Metrics


def draw_reward(metrics: Metrics, folder: Path) -> None:
    """Draw `reward.png`: reward and the share of distinct answers above, the distance in nats below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not (lines := metrics.read()):
        return
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    steps = [line["step"] for line in lines]
    above.plot(steps, [line["val_reward"] for line in lines], "o-", color="#0b6e99", ms=4, label="reward")
    above.plot(steps, [line["val_distinct"] for line in lines], ".--", color="#b5651d", label="distinct answers")
    below.plot(steps, [line["val_kl"] for line in lines], ".-", color="#9a9a9a")
    below.set(xlabel="step", ylabel="nats from the start")
    above.set_title(folder.name.encode("ascii", "replace").decode(), parse_math=False)
    above.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    write_picture(folder / "reward.png", figure)
