"""The embeddings of an MLP's letters, two numbers each, in a plane: `python -m docs.figures.embedding_plane RUN`."""

from data.errors import UserError
from docs import figures
from engine.run.load import load_run

VOWELS = "aeiouy"


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="mlp")
    run = load_run(folder, device="cpu")
    if (width := run.config.net.n_embd) != 2:
        raise UserError(f"{folder} has embeddings of {width} numbers; the plane takes --n-embd 2")
    special = run.tokenizer.special
    table = run.model.wte.weight.detach().numpy()  # (V, 2)
    letters = {i: run.tokenizer.decode([i]) for i in range(len(table)) if i not in special.never_predicted}
    letters = letters | {special.bos: "start", special.pad: "before the start"}
    del letters[special.eos]  # the model predicts it and never reads it
    figure = figures.new(7, 5.2)
    axes = figure.subplots()
    for i, letter in letters.items():
        x, y = map(float, table[i])
        color = "tab:red" if letter in VOWELS else "tab:blue" if len(letter) == 1 else "0.4"
        axes.plot(x, y, "o", color=color, markersize=15 if len(letter) == 1 else 4, alpha=0.25)
        if len(letter) == 1:
            axes.text(x, y, letter, ha="center", va="center", color=color)
        else:
            axes.annotate(letter, (x, y), (0, 6), textcoords="offset points", ha="center", color=color)
    axes.axhline(0, color="0.85", zorder=0)
    axes.axvline(0, color="0.85", zorder=0)
    axes.set(xlabel="first number of the embedding", ylabel="second number")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
