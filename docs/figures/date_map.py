"""Where each character of a translated date looks at: `python -m docs.figures.date_map RUN`."""

from docs import figures
from finetune.translate.picture import weights_of
from finetune.translate.translator import load_translator

SOURCE = "the 21st of November 1987"


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv)
    translator = load_translator(folder, device="cpu")
    (written,) = translator([SOURCE])
    weights, rows, columns = weights_of(translator.model, translator.tokenizer, SOURCE, written, translator.device)
    figure = figures.new(7, 3.4)
    axes = figure.subplots()
    shown = axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks(
            range(len(names)), ["␣" if name == " " else "end" if name == "<eos>" else name for name in names]
        )
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel="source", ylabel="translation")
    figure.colorbar(shown, ax=axes, label="weight")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
