"""What a model would say after each of its layers: the head, read early (the logit lens).

nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from explain.found import Found, name_axis, new_figure, rounded, words
from explain.subject import Subject
from makemore.recurrent import Recurrent
from nanogpt.model import Transformer


def lens(subject: Subject, tokens: Tensor) -> Found:
    """Of each layer and position the likeliest next token, its probability, and the loss of the token that comes.
    UserError for families whose layers do not all end where the head begins."""
    if subject.classifier is not None:
        raise UserError(f"{subject.name} labels texts and expects no next token: no lens for it")
    features = _features(subject, tokens)  # (L, T, C)
    with torch.inference_mode():
        log_p = subject.model.head(features).float().log_softmax(-1)  # (L, T, V)
    likeliest = log_p.argmax(-1)
    nll = -log_p[:, :-1].gather(-1, tokens[1:].expand(len(log_p), -1)[..., None])[..., 0]  # (L, T - 1)
    tokenizer, names = subject.tokenizer, words(subject.tokenizer, tokens.tolist())
    said_tokens = [words(tokenizer, row) for row in likeliest.tolist()]
    p = log_p.exp().amax(-1)
    figure = new_figure(1.5 + 0.32 * len(names), 1.2 + 0.34 * len(p))
    axes = figure.subplots()
    axes.imshow(p.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for layer, row in enumerate(said_tokens):
        for place, token in enumerate(row):
            shown = "_" if token == " " else token if token.isascii() else "?"
            colour = "white" if p[layer, place] > 0.5 else "black"
            axes.text(place, layer, shown, ha="center", va="center", fontsize=8, color=colour, parse_math=False)
    name_axis(axes.xaxis, names)
    axes.set_yticks(range(len(p)), [f"layer {n + 1}" for n in range(len(p))])
    axes.set(xlabel="token read; inside, the one expected next")
    losses = nll.mean(1).tolist() if nll.shape[1] else []
    said = "\n".join(f"layer {n + 1}: loss {loss:.4f} nats a token" for n, loss in enumerate(losses))
    numbers: dict[str, Any] = {
        "tokens": names, "likeliest": said_tokens, "probability": rounded(p.tolist()), "nll": rounded(nll.tolist()),
    }  # fmt: skip
    return Found(numbers, figure, said or "one token: no loss")


def _features(subject: Subject, tokens: Tensor) -> Tensor:
    """The features (L, T, C) that the head would read after each layer; of the last one those that it reads."""
    model: Any = subject.model
    kept: list[Tensor] = []
    if isinstance(model, Transformer):
        watched, keep = model.h, lambda _, __, out: kept.append(model.ln_f(out[1], None, residual=out[0])[0][0])
    elif isinstance(model, Recurrent):
        watched, keep = model.norms, lambda _, __, out: kept.append(out[0])
    else:
        raise UserError(
            f"the layers of a {subject.family} do not end where its head begins: no lens for {subject.name}"
        )
    hooks = [layer.register_forward_hook(keep) for layer in watched]
    try:
        with torch.inference_mode():
            model.hidden(tokens[None], None, None)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(kept)
