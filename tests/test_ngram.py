"""The models that count: Kneser-Ney against an obvious reference, its order, its checkpoint, and the counted bigram."""

import json
import random
import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from data.batches import IGNORE
from data.tokenizers import BOS, EOS, N_SPECIALS, UNK
from engine import load_run
from makemore.bigram import CountedBigram
from makemore.config import BigramConfig, NGramConfig
from makemore.counts.bigram import IMPOSSIBLE, SMOOTHING
from makemore.counts.ngram import MAX_ORDER, NGram, held_out
from tests.conftest import NAMES

LETTERS = sorted(set("".join(NAMES)))
VOCAB = N_SPECIALS + len(LETTERS)
CAN_COME = [EOS, *range(N_SPECIALS, VOCAB)]


def encode(text: str) -> list[int]:
    return [N_SPECIALS + LETTERS.index(letter) for letter in text]


# A text is a list of rows, each the tokens that are read before its first target, and its targets.
LINES = [([BOS], [*encode(name), EOS]) for name in NAMES]
STREAM = [(encode("e"), encode("".join(NAMES)[1:]))]
TEXTS = {"lines": LINES, "stream": STREAM}
every_text = pytest.mark.parametrize("kind", TEXTS)
every_order = pytest.mark.parametrize("order", [1, 2, 3, 4, 5])


def arrays(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and each target's place in its row: what `fit` takes."""
    inputs = [token for first, targets in rows for token in [*first, *targets[:-1]]]
    targets = [token for _, targets in rows for token in targets]
    return np.array(inputs), np.array(targets), np.concatenate([np.arange(len(targets)) for _, targets in rows])


def fitted(rows, order: int | None) -> NGram:
    model = NGram(VOCAB, NGramConfig(order=order))
    model.fit(*arrays(rows))
    return model.eval()


class KneserNey:
    """Chen & Goodman 1998, section 3.2, as it stands there: dictionaries and recursion."""

    def __init__(self, rows, order: int):
        self.counts = [defaultdict(Counter) for _ in range(order)]  # of each context length: context -> token -> count
        for first, targets in rows:
            read = [BOS] * order + first
            for target in targets:
                self.counts[-1][tuple(read[len(read) - order + 1 :])][target] += 1
                read.append(target)
        for k in reversed(range(order - 1)):  # a shorter context counts the different longer ones
            for context, after in self.counts[k + 1].items():
                for token in after:
                    self.counts[k][context[1:]][token] += 1
        self.discounts = [self.discount(level) for level in self.counts]

    @staticmethod
    def discount(level) -> list[float]:
        n = Counter(count for after in level.values() for count in after.values())
        if not (n[1] and n[2] and n[3]):
            return [0.0, 0.5, 0.5, 0.5]
        y = n[1] / (n[1] + 2 * n[2])
        d = [0.0, *(c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3))]
        return [min(max(x, 0.0), max(c - 0.01, 0.0)) for c, x in enumerate(d)]

    def p(self, token: int, context: tuple[int, ...]) -> float:
        shorter = self.p(token, context[1:]) if context else 1 / len(CAN_COME)
        after = self.counts[len(context)].get(context)
        if not after:
            return shorter
        taken = {other: self.discounts[len(context)][min(count, 3)] for other, count in after.items()}
        own = after[token] - taken[token] if token in after else 0.0
        return (own + sum(taken.values()) * shorter) / after.total()


@every_text
@every_order
def test_it_is_interpolated_modified_kneser_ney(kind, order):
    model, reference = fitted(TEXTS[kind], order), KneserNey(TEXTS[kind], order)
    for first, targets in [*TEXTS[kind][:4], ([BOS], encode("nellazzen")), (encode("vi"), [UNK, *encode("elle")])]:
        tokens = [*first, *targets]
        logits = model(torch.tensor([tokens])).logits[0]
        for t in range(len(tokens)):
            read = ([BOS] * order + tokens[: t + 1])[t + 2 :]
            wanted = [reference.p(token, tuple(read)) for token in CAN_COME]
            assert logits[t, CAN_COME].exp().tolist() == pytest.approx(wanted, rel=1e-4)


@every_text
@every_order
def test_probabilities_sum_to_one_after_anything(kind, order):
    model = fitted(TEXTS[kind], order)
    tokens = torch.randint(0, VOCAB, (20, 12), generator=torch.Generator().manual_seed(0))
    p = model(tokens).logits.exp()
    assert torch.allclose(p.sum(-1), torch.ones(20, 12), atol=1e-5)
    assert p[..., CAN_COME].min() > 0 and p[..., [0, 1, 3, 4, 5]].max() < 1e-15


@every_text
@every_order
def test_the_loss_is_that_of_the_logits(kind, order):
    model = fitted(TEXTS[kind], order)
    tokens = torch.tensor([encode("zebraelliott"), encode("charlottemia")])
    targets = tokens.roll(-1, 1)
    targets[0, 3] = targets[:, -1] = IGNORE
    full, lean = model(tokens, targets), model(tokens, targets, want_logits=False)
    valid = targets != IGNORE
    by_hand = -full.logits[valid].gather(-1, targets[valid][:, None]).sum()
    assert full.n_tokens == 21 and lean.logits is None
    assert full.nll_sum.item() == lean.nll_sum.item() == pytest.approx(by_hand.item(), rel=1e-5)


def held_out_loss(rows, held_out, order: int) -> float:
    model = fitted(rows, order)
    losses = [
        model(torch.tensor([[*first, *t[:-1]]]), torch.tensor([t]), want_logits=False).nll_sum for first, t in held_out
    ]
    return float(sum(losses))


def test_the_order_is_the_one_under_which_every_tenth_row_is_likeliest():
    letters = random.Random(0)
    words = [letters.choices(["ella", "anna", "mia", "zoe"], k=2) for _ in range(300)]
    noise = [letters.choices("elamiznors", k=7) for _ in range(30)]
    lines = [([BOS], [*encode("".join(line)), EOS]) for line in words]
    lines[9::10] = [([BOS], [*encode("".join(line)), EOS]) for line in noise]
    rest = [line for number, line in enumerate(lines) if number % 10 != 9]
    losses = {order: held_out_loss(rest, lines[9::10], order) for order in range(2, MAX_ORDER + 1)}
    assert fitted(lines, None).order == min(losses, key=losses.get) < fitted(rest, None).order


def test_a_sorted_list_gets_about_the_order_of_a_shuffled_one():
    letters = random.Random(0)
    words = sorted("".join(letters.choices("abcdefgh", k=1)) * 3 + letters.choice(NAMES) for _ in range(600))
    shuffled = random.Random(1).sample(words, len(words))
    orders = [fitted([([BOS], [*encode(w), EOS]) for w in rows], None).order for rows in (words, shuffled)]
    assert min(orders) >= 4 and abs(orders[0] - orders[1]) <= 2


@pytest.mark.parametrize(("rows", "held"), [([3, 2, 4], [5, 6, 7, 8]), ([10], [9]), ([1] * 25, [9, 19])])
def test_what_is_held_out_to_choose_an_order(rows, held):
    position = np.concatenate([np.arange(length) for length in rows])
    assert np.flatnonzero(held_out(position)).tolist() == held


def test_a_text_without_memory_gets_a_short_order_and_one_with_memory_a_long_one():
    letters = random.Random(0)
    noise = [([], encode("".join(letters.choices(LETTERS, k=3000))))]
    words = [([], encode("".join(letters.choices(NAMES, k=1000))))]
    assert fitted([(t[:1], t[1:]) for _, t in noise], None).order == 2
    assert fitted([(t[:1], t[1:]) for _, t in words], None).order >= 4


@pytest.mark.parametrize("length", [1, 2, 3, 10])
@pytest.mark.parametrize("first", [[BOS], encode("a")], ids=["line", "stream"])
def test_the_tiniest_text_can_be_counted(first, length):
    model = fitted([(first, [*encode("emma" * 3)[: length - 1], EOS])], None)
    logits = model(torch.tensor([[*first, *encode("em")]])).logits
    assert torch.allclose(logits.exp().sum(-1), torch.ones(1, 3), atol=1e-5)


@pytest.mark.parametrize("order", [None, 1, 3])
def test_a_checkpoint_of_any_order_loads_into_a_model_that_knows_none(order):
    model, again = fitted(LINES, order), NGram(VOCAB, NGramConfig())
    again.load_state_dict(model.state_dict())
    tokens = torch.tensor([[BOS, *encode("ellarose")]])
    a, b = model(tokens), again.eval()(tokens)
    assert {"base", "contexts_0", "grams_0", "share_0", "freed_0", "total_0"} <= model.state_dict().keys()
    assert again.order == model.order and again.n_counts == model.n_counts and torch.equal(a.logits, b.logits)
    assert torch.equal(again(tokens[:, 4:], state=again(tokens[:, :4]).state).logits, a.logits[:, 4:])


def test_counts_are_loaded_to_where_the_model_is():
    model = fitted(LINES, 3)
    there = NGram(model.vocab_size, NGramConfig(order=3)).to("meta")
    with warnings.catch_warnings(action="ignore"):  # nothing is copied to where there is no memory
        there.load_state_dict(model.state_dict())
    assert {part.device.type for part in there.state_dict().values()} == {"meta"}


def test_the_size_is_the_number_of_different_grams():
    def grams(order: int) -> int:
        return len({tuple(([BOS] * order + t)[i : i + order]) for _, t in LINES for i in range(1, len(t) + 1)})

    assert fitted(LINES, 3).n_counts == grams(1) + grams(2) + grams(3)


def test_evaluation_lets_counts_see_their_true_history(cli, text, tmp_path):
    trained = cli("train.py", "--model", "ngram", "--order", 5, "--data", text, "--out", "run")
    assert trained.code == 0, trained.err
    run, content = load_run(tmp_path / "run"), text.read_text()
    ids = torch.tensor(run.tokenizer.encode(content[int(len(content) * 0.9) :]).astype(int))[None]
    whole = run.model(ids[:, :-1], ids[:, 1:], want_logits=False)  # one window, where evaluation has several
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val_tokens"] == whole.n_tokens > 64
    assert summary["val_loss"] == pytest.approx(whole.nll_sum.item() / whole.n_tokens.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["stream", "lines"])
def test_a_counted_run_samples_and_scores(cli, text, kind):
    trained = cli("train.py", "--model", "ngram", "--data", text, "--kind", kind, "--out", "run")
    assert trained.code == 0, trained.err
    assert cli("sample.py", "run", "--num", 2, "--prompt", "they").out.startswith("they")
    scored = cli("sample.py", "run", "--score", f"@{text}")
    assert scored.code == 0, scored.err
    assert 0 < float(scored.out.split()[0]) < 2


@every_text
def test_the_counted_bigram_is_the_smoothed_counts(kind):
    inputs, targets, position = arrays(TEXTS[kind])
    pairs = Counter(zip(inputs.tolist(), targets.tolist(), strict=True))
    model = CountedBigram(VOCAB, BigramConfig(counts=True))
    model.fit(inputs, targets, position)
    p = model.eval()(torch.arange(VOCAB)[None]).logits[0].exp()
    for a in range(VOCAB):
        total = sum(pairs[a, b] + SMOOTHING for b in CAN_COME)
        assert p[a, CAN_COME].tolist() == pytest.approx([(pairs[a, b] + SMOOTHING) / total for b in CAN_COME], rel=1e-5)
    assert p[:, [0, 1, 3, 4, 5]].max() <= np.exp(IMPOSSIBLE) * 1.01
    assert model.n_counts == len(pairs)


def test_the_counted_bigram_survives_its_checkpoint():
    model, again = CountedBigram(VOCAB, BigramConfig(counts=True)), CountedBigram(VOCAB, BigramConfig(counts=True))
    model.fit(*arrays(LINES))
    again.load_state_dict(model.state_dict())
    assert again.n_counts == model.n_counts > 0 and torch.equal(again.table.weight, model.table.weight)
