"""Texts that join and leave a batch between two steps: each is what it would be alone."""

import random

import pytest
import torch

from engine import load_run
from engine.run.company import Company
from engine.run.healing import heal
from makemore.rows import ApartRows, StateRows
from nanogpt.slots import Slots
from tests.helpers import FAMILIES, STREAM, trained, trained_any
from tests.matrices import matrix
from tests.variants import VOCAB, every_variant, ready

STEPS, MOST = 90, 6


class Texts:
    """Random texts in the rows of `model`, beside what each has read."""

    def __init__(self, model, seed: int):
        self.model, self.rows, self.draw = model, model.rows(), random.Random(seed)
        self.read: list[list[int]] = []
        self.logits: list[torch.Tensor] = []  # after what each has read

    def tokens(self, count: int) -> list[int]:
        return [self.draw.randrange(6, VOCAB) for _ in range(count)]

    def join(self) -> None:
        self.read.append(self.tokens(self.draw.randint(1, 30)))
        logits, state = self.model.read_last(torch.tensor([self.read[-1]]))
        self.rows.add(state)
        self.logits.append(logits[0])

    def leave(self) -> None:
        row = self.draw.randrange(len(self.read))
        self.rows.remove(row)
        for numbers in (self.read, self.logits):
            numbers[row] = numbers[-1]
            numbers.pop()

    def step(self) -> None:
        new = self.tokens(len(self.read))
        self.logits = list(self.rows.step(torch.tensor(new)))
        for tokens, token in zip(self.read, new, strict=True):
            tokens.append(token)


@every_variant
@pytest.mark.parametrize("seed", matrix([0, 1], [0]))
def test_a_row_in_company_is_the_row_alone(name, seed):
    model = ready(name)
    with torch.inference_mode():
        texts = Texts(model, seed)
        for n in range(STEPS):
            if not texts.read or (len(texts.read) < MOST and texts.draw.random() < 0.3):
                texts.join()
            elif texts.draw.random() < 0.2:
                texts.leave()
            if texts.read:
                texts.step()
            if n % 9 == 0:
                for tokens, logits in zip(texts.read, texts.logits, strict=True):
                    alone = model.read(torch.tensor([tokens])).logits[0, -1]
                    torch.testing.assert_close(logits.double(), alone.double(), rtol=1e-5, atol=1e-5, equal_nan=True)
        assert len(texts.rows) == len(texts.read)


def test_each_family_has_the_rows_that_it_is_fast_with():
    kinds = {name: type(ready(name).rows()) for name in ("gru", "transformer", "ngram")}
    assert kinds == {"gru": StateRows, "transformer": Slots, "ngram": StateRows}
    changed = ready("transformer")
    changed.h[0].register_forward_hook(lambda *_: None)
    assert isinstance(changed.rows(), ApartRows)


WISHES = [
    {"temperature": 0.8}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.7, "min_p": 0.02}, {"stop": "a"},
    {"repetition_penalty": 1.3}, {"max_new_tokens": 5}, {"min_new_tokens": 12, "stop": "e"},
]  # fmt: skip


def in_company(run, wishes: list[tuple[str, dict]], most: int = 7) -> list[str]:
    """The texts of many samples, of which up to `most` are drawn together."""
    company, waiting = Company(run), list(enumerate(wishes))
    texts, members, draw = [prompt for prompt, _ in wishes], {}, random.Random(0)
    while waiting or len(company):
        while waiting and (not len(company) or (len(company) < most and draw.random() < 0.4)):
            n, (prompt, wish) = waiting.pop(0)
            ids = run.prompt_ids(prompt)
            healing = heal(run.tokenizer, ids, run.prompt_ids()) if prompt else None
            members[company.join(ids, run.request(**wish), healing)] = n
        for member, drawn in company.step(draw.randint(1, 20)):
            texts[members[member]] += drawn.text
    return texts


@pytest.mark.parametrize("model", matrix(FAMILIES, ["gru", "transformer", "ngram"]))
@pytest.mark.usefixtures("names", "text")
def test_a_seed_gives_the_text_that_it_gives_alone(cli, model):
    trained_any(cli, model, **STREAM)
    run = load_run("run")
    wishes = [
        ("ab" * (seed % 3), {"seed": seed, "max_new_tokens": 40} | WISHES[seed % len(WISHES)]) for seed in range(64)
    ]
    assert in_company(run, wishes) == [run.generate(prompt, **wish)[0] for prompt, wish in wishes]


@pytest.mark.usefixtures("names", "text")
def test_healed_prompts_and_mixtures_are_drawn_so_too(cli):
    trained(cli, "gru", **STREAM, tokenizer="bpe:300", mix_ngram=3)
    run = load_run("run")
    wishes = [(("the ", "", "wh", "a  ")[n % 4], {"seed": n, "max_new_tokens": 20}) for n in range(16)]
    assert in_company(run, wishes) == [run.generate(prompt, **wish)[0] for prompt, wish in wishes]


@pytest.mark.usefixtures("names", "text")
def test_who_leaves_disturbs_nobody_and_probabilities_are_told(cli):
    trained(cli, "transformer", **STREAM)
    run = load_run("run")
    company, request = Company(run), run.request(seed=3, max_new_tokens=30)
    stays = company.join(run.prompt_ids("a"), request, logprobs=4)
    text, others = "a", [company.join(run.prompt_ids("ba"), run.request(seed=n, max_new_tokens=9)) for n in range(5)]
    while len(company):
        if others:
            company.leave(others.pop())
        for member, drawn in company.step():
            assert member is stays or drawn.logprob is None
            if member is stays:
                text += drawn.text
                known = dict(drawn.likeliest)
                assert len(known) == 4 and known.get(drawn.id, drawn.logprob) == pytest.approx(drawn.logprob)
                assert (
                    drawn.logprob <= max(known.values()) + 1e-6 and list(known.values()) == sorted(known.values())[::-1]
                )
    assert text == run.generate("a", seed=3, max_new_tokens=30)[0] and stays.end == "length"
