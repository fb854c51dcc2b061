"""Which tokens an answer rests on: of a classifier its label, of a language model the token that it expects next.

Occlusion: how much less likely the answer gets when a token is replaced by `<unk>` (Zeiler & Fergus 2014). Integrated
gradients: the gradient by each token's embedding along the way from the mean of all embeddings to it (Sundararajan,
Taly & Yan 2017), whose sum is the answer's gain on the way. (From zero, norms would make the way a jump.)
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from data.errors import UserError
from explain.found import Found, name_axis, new_figure, rounded, words
from explain.subject import Subject

STEPS = 128  # of the way, in the middle of each


def saliency(subject: Subject, tokens: Tensor) -> Found:
    """For the likeliest answer: `occlusion` (T,) and `integrated_gradients` (T,), in nats of its log-probability.
    UserError for a model without a table of embeddings."""
    if getattr(subject.model, "wte", None) is None:
        raise UserError(f"{subject.name} is a {subject.family}, which has no table of embeddings: nothing to follow")
    with torch.no_grad():
        log_p = log_probabilities(subject, tokens[None])[0]
    if subject.classifier is None:
        log_p[subject.tokenizer.special.never_predicted] = -torch.inf
    answer = int(log_p.argmax())
    name = subject.labels[answer] if subject.labels else subject.tokenizer.token_text(answer)
    with torch.no_grad():
        others = tokens.repeat(len(tokens), 1).fill_diagonal_(subject.tokenizer.special.unk)
        occlusion = log_p[answer] - log_probabilities(subject, others)[:, answer]
    gradients, gained = integrated_gradients(subject, tokens, answer)
    names = words(subject.tokenizer, tokens.tolist())
    figure = new_figure(1.5 + 0.3 * len(names), 4)
    for axes, values, title in zip(figure.subplots(2, 1, sharex=True), (occlusion, gradients),
                                   ("occlusion", "integrated gradients"), strict=True):  # fmt: skip
        axes.bar(range(len(names)), values.tolist(), color=["#0b6e99" if v > 0 else "#b5651d" for v in values.tolist()])
        axes.set_ylabel("nats")
        axes.set_title(f"{title}: what speaks for {ascii(name)}", fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        name_axis(axes.xaxis, names)
    most = sorted(range(len(names)), key=lambda place: -float(occlusion[place]))[:5]
    said = f"{name!r} with probability {float(log_p[answer].exp()):.3f}; it rests most on " + ", ".join(
        f"{names[place]!r} (place {place}: {float(occlusion[place]):+.3f} nats)" for place in most
    )
    numbers = {
        "tokens": names, "answer": name, "log_probability": float(log_p[answer]),
        "occlusion": rounded(occlusion.tolist()), "integrated_gradients": rounded(gradients.tolist()),
        "gained": gained,
    }  # fmt: skip
    return Found(numbers, figure, said)


def log_probabilities(subject: Subject, tokens: Tensor) -> Tensor:
    """The log-probabilities of all answers after each row of `tokens` (B, T), (B, answers)."""
    if subject.classifier is None:
        return subject.model.head(subject.model.hidden(tokens, None, None)[0][:, -1]).float().log_softmax(-1)
    targets = torch.full_like(tokens, -1)
    targets[:, -1] = 0
    logits = subject.classifier(tokens, targets).logits.float()
    return logits.log_softmax(-1) if subject.classifier.label_sets is None else logsigmoid(logits)


def integrated_gradients(subject: Subject, tokens: Tensor, answer: int) -> tuple[Tensor, float]:
    """What each token's embedding gives to the log-probability of the answer, (T,), on the way from the mean embedding;
    and how much it gained on that way, which is their sum but for the error of the steps."""
    table: Any = subject.model.wte
    start = table.weight.detach().mean(0)
    way: Tensor = table(tokens).detach() - start  # (T, C)
    total = torch.zeros_like(way)

    def at(share: float, gradient: bool) -> tuple[Tensor, Tensor]:
        x = (start + share * way).requires_grad_(gradient)
        # A window may begin before the text: what stands there stays as it is.
        hook = table.register_forward_hook(lambda _, __, out: torch.cat([out[:, : out.shape[1] - len(x)], x[None]], 1))
        try:
            with torch.set_grad_enabled(gradient):
                return log_probabilities(subject, tokens[None])[0, answer], x
        finally:
            hook.remove()

    for step in range(STEPS):
        value, x = at((step + 0.5) / STEPS, True)
        total += torch.autograd.grad(value, x)[0] / STEPS
    gained = float(at(1.0, False)[0] - at(0.0, False)[0])
    return (total * way).sum(1), gained
