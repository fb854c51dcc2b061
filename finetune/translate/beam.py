"""Beam search: the few likeliest beginnings of each translation are kept, instead of the likeliest one.

A finished translation is judged by its mean log-probability a token, `<eos>` included, so that short ones have no
advantage (Graves, "Sequence Transduction with Recurrent Neural Networks", 2012; Sutskever et al. 2014).
"""

import torch
from torch import Tensor

from data.tokenizers import Special
from makemore.base import LanguageModel, State


def search(model: LanguageModel, prefix: Tensor, special: Special, longest: int, beams: int) -> list[list[int]]:
    """The best translation found of each of the sources `prefix` (B, S), of at most `longest` tokens: its ids, without
    `<eos>`. At each step the `beams` likeliest beginnings go on; a source is done once as many have ended, and what has
    not ended by then counts where nothing has."""
    B, V = len(prefix), model.vocab_size
    first = model.start(prefix, None)
    assert first is not None  # every row has a source
    state: State = {name: part.repeat_interleave(beams, 0) for name, part in first.items()}  # (B K, ...)
    tokens = prefix.new_full((B * beams, 1), special.bos)
    total = torch.full((B, beams), -torch.inf, dtype=torch.float64, device=prefix.device)
    total[:, 0] = 0  # all beginnings of a source are one at first
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
    of_source = torch.arange(B, device=prefix.device)[:, None] * beams

    for length in range(1, longest + 1):
        out = model.read(tokens[:, -1:], state)
        assert out.logits is not None  # `read` gives them always
        logits = out.logits[:, -1].double()
        logits[:, special.never_predicted] = -torch.inf
        scores = total[:, :, None] + logits.log_softmax(-1).view(B, beams, V)
        # Of 2 K candidates at most K end, since each beginning ends in one way: K others are left to go on.
        best, index = scores.flatten(1).topk(min(2 * beams, beams * V), 1)
        source, token = index // V, index % V
        ends = token == special.eos
        for b, k in ends.nonzero().tolist():
            if best[b, k] > -torch.inf and k < beams and len(finished[b]) < beams:
                ids = tokens[of_source[b, 0] + source[b, k], 1:].tolist()
                finished[b].append((float(best[b, k]) / length, ids))
        chosen = best.masked_fill(ends, -torch.inf).topk(beams, 1)
        total, rows = chosen.values, (of_source + source.gather(1, chosen.indices)).flatten()
        state = {name: part[rows] for name, part in out.state.items()}
        tokens = torch.cat([tokens[rows], token.gather(1, chosen.indices).view(-1, 1)], 1)
        if all(len(found) >= beams for found in finished):
            break

    for b in range(B):
        if not finished[b]:
            finished[b].append((float(total[b, 0]), tokens[of_source[b, 0], 1:].tolist()))
    return [max(found, key=lambda each: each[0])[1] for found in finished]
