"""The step of a small model as compiled code: the same numbers as torch's, where there is a compiler."""

import copy
import shutil

import pytest
import torch

import makemore.compiled
from data.tokenizers import Special
from engine.run.generate import generate
from engine.run.noise import Noise
from engine.run.sampling import Sampling, draw
from kernels.step import library
from makemore.base import Stepper
from makemore.recurrent_step import CompiledStepper
from nanogpt.slots import Slots
from nanogpt.stepper import TransformerStepper
from tests.variants import VARIANTS, VOCAB, build

EOS = Special().eos
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here")
FAMILIES = ("transformer", "rnn", "lstm", "gru")
# What stays with torch: hashed n-grams, counts that are read, a context without end, cells written out.
APART = ("hash", "window", "written", "mix", "read", "unbounded")
NAMES = [name for name in VARIANTS if name.split()[0] in FAMILIES]


def compiled(step) -> bool:
    return isinstance(step, CompiledStepper) or getattr(step, "compiled", None) is not None


@needs_compiler
def test_the_default_of_each_family_is_compiled():
    for name in FAMILIES:
        model = build(name).float()
        with torch.inference_mode():
            assert compiled(model.stepper(model.read_last(torch.full((1, 3), 7))[1])), name


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_gives_what_reading_the_whole_text_gives(name):
    model = build(name).float()
    tokens = torch.randint(6, VOCAB, (5, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, state = model.read_last(tokens[:, :3])
        step, features = model.stepper(state), model.stepper(state)
        for t in range(3, 40):
            logits = step(tokens[:, t])
            if compiled(step):
                torch.testing.assert_close(
                    model.head(features.features(tokens[:, t])), logits, rtol=1e-5, atol=1e-5, equal_nan=True
                )
        expected = build(name).float().read(tokens).logits[:, -1]
    if not compiled(step):
        assert any(each in name for each in APART) or getattr(model, "context", 1) is None or model.ngrams is not None
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=2e-4, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_to_the_bit_what_it_is_alone(name):
    model = build(name).float()
    tokens = torch.randint(6, VOCAB, (33, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        states = [model.read_last(row[None, :3])[1] for row in tokens]
        alone = [model.stepper(state) for state in states[:2]]
        rows = model.rows()
        for state in states:
            rows.add(state)
        for t in range(3, 40):
            logits = rows.step(tokens[: len(rows), t])
            for n, step in enumerate(alone):
                assert torch.equal(step(tokens[n : n + 1, t])[0], logits[n])
            if t == 20:
                rows.remove(len(rows) - 1)


def test_what_is_changed_is_not_compiled():
    for name in FAMILIES:
        model = build(name).float()
        tokens = torch.full((1, 3), 7)
        hooked, wider = copy.deepcopy(model), copy.deepcopy(model).double()
        (getattr(hooked, "lm_head", None) or hooked.wte).register_forward_hook(lambda *_: None)
        with torch.inference_mode():
            for changed in (hooked, wider):
                assert not compiled(changed.stepper(changed.read_last(tokens)[1])), name


def test_without_a_compiler_torch_takes_the_step(monkeypatch, tmp_path):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library.load.__wrapped__(tmp_path) is None
    monkeypatch.setattr(makemore.compiled, "functions", lambda: None)
    for name in FAMILIES:
        model = build(name).float()
        with torch.inference_mode():
            _, state = model.read_last(torch.full((1, 3), 7))
            assert isinstance(model.stepper(state), (Stepper, TransformerStepper)) and not compiled(
                model.stepper(state)
            )
            rows = model.rows()
            rows.add(state)
            assert not (isinstance(rows, Slots) and rows.compiled)


@needs_compiler
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(), Sampling(0.3), Sampling(0), Sampling(2.0, top_k=3), Sampling(top_p=0.6), Sampling(min_p=0.1),
        Sampling(0.7, 7, 0.8, 0.01, 1.4), Sampling(1.3, top_k=200, top_p=0.95), Sampling(0.7, top_k=1),
    ],
)  # fmt: skip
def test_compiled_code_draws_what_torch_draws(sampling, monkeypatch):
    for seed in range(200):
        logits = 5 * torch.randn(1 + seed % 4, 2 + seed, dtype=torch.float64, generator=torch.manual_seed(seed))
        logits[:, seed % 2] = -torch.inf
        seen = torch.rand(logits.shape, generator=torch.manual_seed(seed)) < 0.3

        def drawn(logits=logits, seen=seen, seed=seed):
            noise = Noise(torch.Generator().manual_seed(seed), *logits.shape)
            return draw(logits, sampling, [noise], seen)

        by_code = drawn()
        with monkeypatch.context() as patch:
            patch.setattr(makemore.compiled, "functions", lambda: None)
            assert torch.equal(by_code, drawn()), seed


@needs_compiler
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0), Sampling(0.8, top_k=5, repetition_penalty=1.5), Sampling(top_p=0.7)], ids=str
)
def test_texts_are_those_that_torch_draws(name, sampling, monkeypatch):
    model, prompts = build(name).float(), torch.tensor([[7, 8, 9], [10, 11, 12]])

    def drawn(seed: int, suppressed: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(seed + n) for n in range(2)]
        tokens = generate(model, prompts, 50, sampling, suppressed, EOS, generators, copies=[2, 1])
        return [token.tolist() for token in tokens]

    wishes = [(seed, [EOS] if seed % 2 else []) for seed in range(6)]
    by_code = [drawn(*wish) for wish in wishes]
    assert sampling != Sampling() or any(EOS in tokens for text in by_code for tokens in text)
    monkeypatch.setattr(makemore.compiled, "functions", lambda: None)
    assert by_code == [drawn(*wish) for wish in wishes]


@needs_compiler
def test_a_library_that_others_may_write_is_not_run(tmp_path):
    find = library.load.__wrapped__
    assert find(tmp_path) is not None
    (made,) = (tmp_path / "step").glob("*.so")
    made.chmod(0o666)
    assert find(tmp_path) is None
    made.unlink()
    (tmp_path / "step").chmod(0o777)
    assert find(tmp_path) is None


@needs_compiler
def test_a_compiler_that_fails_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "COMPILE", ["--no-such-flag"])
    assert library.load.__wrapped__(tmp_path) is None
    assert not [*(tmp_path / "step").iterdir()]
