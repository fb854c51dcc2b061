"""The table of a counted bigram model as a heat map: `python -m docs.figures.bigram_table RUN`."""

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="bigram")
    run = load_run(folder, device="cpu")
    special, size = run.tokenizer.special, run.tokenizer.vocab_size
    with torch.inference_mode():
        logits = run.model.read(torch.arange(size)[:, None]).logits  # (V, 1, V), after each token
    assert logits is not None
    p = logits[:, 0].softmax(-1).numpy()
    tokens = [i for i in range(size) if i not in special.never_predicted and i != special.eos]
    rows, columns = [special.bos, *tokens], [*tokens, special.eos]
    letters = {i: run.tokenizer.decode([i]) for i in tokens} | {special.bos: "start", special.eos: "end"}
    figure = figures.new(7, 6.4)
    axes = figure.subplots()
    shown = axes.imshow(p[np.ix_(rows, columns)], cmap="Blues", vmin=0)
    axes.set_xticks(range(len(columns)), [letters[i] for i in columns])
    axes.set_yticks(range(len(rows)), [letters[i] for i in rows])
    axes.xaxis.tick_top()
    axes.set(xlabel="next token", ylabel="last token")
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.get_xticklabels()[-1].set_rotation(90)
    figure.colorbar(shown, shrink=0.8, label="probability")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
