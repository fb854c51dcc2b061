"""The tokens of a vocabulary in the plane of their embeddings' two main directions."""

from typing import Any

import torch

from data.errors import UserError
from explain.found import Found, new_figure, rounded
from explain.subject import Subject

MOST = 300  # tokens that are drawn: of a large vocabulary the first


def embeddings(subject: Subject) -> Found:
    """Each token's place (V, 2), and the share of all variance that each direction has. UserError for a model without a
    table of embeddings."""
    table: Any = getattr(subject.model, "wte", None)
    if table is None:
        raise UserError(f"{subject.name} is a {subject.family}, which has no table of embeddings")
    special = subject.tokenizer.special
    ids = [id_ for id_ in range(subject.tokenizer.vocab_size) if id_ not in special.never_predicted][:MOST]
    weight = table.weight.detach().float()[ids]
    centred = weight - weight.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    share = (values.square() / values.square().sum().clamp_min(1e-30))[:2].tolist()
    names = [subject.tokenizer.token_text(id_) for id_ in ids]
    figure = new_figure(7, 7)
    axes = figure.subplots()
    axes.scatter(*plane.T.numpy(), s=4, color="#0b6e99", alpha=0.4)
    for name, (x, y) in zip(names, plane.tolist(), strict=True):
        axes.annotate(name if name.isascii() else name.encode("unicode_escape").decode(), (x, y), fontsize=8,
                      parse_math=False)  # fmt: skip
    axes.set(xlabel=f"first direction ({share[0]:.0%} of the variance)", ylabel=f"second ({share[1]:.0%})")
    numbers = {"tokens": names, "plane": rounded(plane.tolist()), "variance": rounded(share)}
    return Found(numbers, figure, f"{len(names):,} tokens; the plane has {sum(share):.0%} of their variance")
