"""python -m explain: what it says of a model is what the model computes."""

import json
from pathlib import Path

import pytest
import torch

from data.tokenizers import CharTokenizer
from engine.config.flags import parse
from engine.registry import build_model
from explain.gates import gates_of
from explain.lens import lens
from explain.saliency import saliency
from explain.subject import Subject
from nanogpt.maps import attention_maps
from tests.helpers import ok, quick, refused, tree
from tests.matrices import matrix

MODULE = "-m explain"
TRANSFORMERS = {
    "learned": (), "rope": ("--positions", "rope", "--qk-norm"), "alibi": ("--positions", "alibi"),
    "grouped": ("--n-kv-head", "2"), "window": ("--window", "4", "--positions", "rope"),
    "capped": ("--attention-cap", "5"),
}  # fmt: skip


def model(*flags: str):
    torch.manual_seed(3)
    config, _ = parse([*flags, "--context", "16", "--dropout", "0"])
    built = build_model(config, 20).eval()
    with torch.no_grad():
        for p in built.parameters():
            p += 0.1 * torch.randn_like(p)
    return built


@pytest.mark.parametrize("kind", matrix(TRANSFORMERS, ["learned", "rope"]))
def test_weights_times_values_are_what_the_attention_gives(kind):
    transformer = model("--model", "transformer", "--n-layer", "2", *TRANSFORMERS[kind])
    tokens, given = torch.randint(6, 20, (12,)), []
    hooks = [
        block.attn.attend.register_forward_hook(lambda _, inputs, out: given.append((inputs[2], out)))
        for block in transformer.h
    ]
    with torch.no_grad():
        transformer(tokens[None])
    for hook in hooks:
        hook.remove()
    for weights, (v, out) in zip(attention_maps(transformer, tokens), given, strict=True):
        v = v[0].repeat_interleave(len(weights) // v.shape[1], 0)  # (H, T, hs)
        torch.testing.assert_close(weights @ v, out[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize("family, cells", [("gru", "fused"), ("lstm", "fused"), ("lstm", "written")])
def test_gates_are_those_with_which_the_layers_compute(family, cells):
    recurrent = model("--model", family, "--n-layer", "2", "--cells", cells)
    tokens = torch.randint(6, 20, (9,))
    with torch.no_grad():
        found = gates_of(recurrent, tokens)
        h, c = torch.zeros(2, recurrent.n_hidden), torch.zeros(2, recurrent.n_hidden)
        hidden, state = recurrent.hidden(tokens[None], None, None)
    assert all(values.shape == (2, 9, recurrent.n_hidden) for values in found.values())
    assert all(0 <= values.min() and values.max() <= 1 for values in found.values())
    if family == "lstm":  # the output gate times tanh of the memory is the hidden vector
        for layer in (0, 1):
            memory = state[f"c{layer}"][0]
            torch.testing.assert_close(found["output"][layer, -1] * memory.tanh(), state[f"h{layer}"][0])
    else:  # an update gate of 1 keeps what was there
        with torch.no_grad():
            for layer in recurrent.layers:
                layer.bias_ih_l0[recurrent.n_hidden : 2 * recurrent.n_hidden] = 50.0
            shut = gates_of(recurrent, tokens)
            kept = recurrent.hidden(tokens[None], None, None)[1]
        assert shut["update"].min() > 0.999 and kept["h0"].abs().max() < 1e-3 and h.shape == c.shape
    assert hidden.shape[1] == 9


@pytest.mark.parametrize("flags", [("--model", "transformer", "--n-layer", "3"), ("--model", "gru", "--n-layer", "2")])
def test_the_last_line_of_the_lens_is_the_model(flags):
    whole = model(*flags)
    subject = Subject("run", flags[1], whole, None, [], CharTokenizer("abcdefghijklmn"), True)
    tokens = torch.randint(6, 20, (10,))
    found = lens(subject, tokens)
    with torch.no_grad():
        log_p = whole(tokens[None]).logits[0].log_softmax(-1)
    last = torch.tensor(found.numbers["nll"][-1])
    torch.testing.assert_close(last, -log_p[torch.arange(9), tokens[1:]], atol=1e-5, rtol=1e-4)
    assert len(found.numbers["nll"]) == int(flags[3])


@pytest.fixture
def spam(cli, tmp_path, names):
    """A classifier `spam` of words with an x."""
    lines = [f"{'spam' if n % 2 else 'ham'}\tword{'x' if n % 2 else 'o'}{chr(97 + n % 20)}" for n in range(80)]
    (tmp_path / "spam.tsv").write_text("\n".join(lines))
    size = ("--model", "gru", "--n-embd", 12, "--n-hidden", 24, "--steps", 60, "--lr", 1e-2, "--eval-interval", 60)
    ok(cli("-m finetune.classify", "--data", "spam.tsv", *size, "--out", "spam"))


def test_a_label_rests_on_the_letter_that_makes_it(cli, spam):
    before = tree(Path("spam"))
    done = ok(cli(MODULE, "spam", "--what", "saliency", "--text", "wordxc", "--out", "seen"))
    found = json.loads(Path("seen/saliency.json").read_text())
    assert (
        (found["what"], found["run"], found["answer"]) == ("saliency", "spam", "spam")
        and Path("seen/saliency.png").exists()
        and "'spam' with probability" in done.out
    )
    occlusion = dict(zip(found["tokens"], found["occlusion"], strict=True))
    assert max(occlusion, key=occlusion.get) == "x"
    assert sum(found["integrated_gradients"]) == pytest.approx(found["gained"], abs=1e-3)
    assert tree(Path("spam")) == before
    refused(cli(MODULE, "spam", "--what", "lens", "--text", "wordxc"), "spam labels texts and expects no next token")


@pytest.mark.parametrize(
    "family", matrix(["transformer", "gru", "lstm", "rnn", "mlp", "cnn", "bigram"], ["transformer", "mlp"])
)
def test_every_family_is_shown_or_refused_with_the_reason(cli, names, family):
    ok(cli("train.py", *quick(family, data="names.txt", out="run")))
    shown = {
        "attention": family == "transformer", "gates": family in ("gru", "lstm"),
        "lens": family in ("transformer", "gru", "lstm", "rnn"), "saliency": family != "bigram",
        "embeddings": family != "bigram",
    }  # fmt: skip
    for what, is_shown in shown.items():
        words = (MODULE, "run", "--what", what, *(() if what == "embeddings" else ("--text", "anna")))
        if is_shown:
            ok(cli(*words))
            assert json.loads(Path(f"explained/{what}.json").read_text()) and Path(f"explained/{what}.png").exists()
        else:
            refused(cli(*words), f"run is a {family}" if what != "lens" else f"the layers of a {family}")


def test_what_cannot_be_looked_at_is_refused(cli, names):
    ok(cli("train.py", *quick("transformer", data="names.txt", out="run")))
    for words, said in {
        ("run", "--what", "lens"): "--what lens needs --text",
        ("run", "--what", "lens", "--text", ""): "--text is empty",
        ("run", "--what", "lens", "--text", "anna" * 99): "shorten it",
        ("run", "--what", "embeddings", "--text", "a"): "--text means nothing",
        ("run", "--what", "thoughts", "--text", "a"): "thoughts",
        ("nowhere", "--what", "lens", "--text", "a"): "no run directory nowhere",
        ("run", "--what", "lens", "--text", "a", "--out", "run/config.json"): "cannot write run/config.json",
    }.items():
        refused(cli(MODULE, *words), said)
    ok(cli("train.py", "--model", "ngram", "--data", "names.txt", "--out", "counts"))
    refused(cli(MODULE, "counts", "--what", "lens", "--text", "anna"), "counts counts, and has nothing inside")
    ok(cli("train.py", *quick("gru", data="names.txt", out="unbounded")))
    refused(cli(MODULE, "unbounded", "--what", "gates", "--text", "a" * 2000), "more than 1,024")
    assert "not in the vocabulary" in ok(cli(MODULE, "run", "--what", "lens", "--text", "an☃a")).err


def test_saliency_of_a_language_model_is_of_the_next_token():
    whole = model("--model", "transformer", "--n-layer", "1")
    subject = Subject("run", "transformer", whole, None, [], CharTokenizer("abcdefghijklmn"), True)
    tokens = torch.randint(6, 20, (7,))
    found = saliency(subject, tokens).numbers
    with torch.no_grad():
        log_p = whole(tokens[None]).logits[0, -1].log_softmax(-1)
    log_p[subject.tokenizer.special.never_predicted] = -torch.inf
    assert found["log_probability"] == pytest.approx(float(log_p.max()), abs=1e-5)
    assert found["answer"] == subject.tokenizer.token_text(int(log_p.argmax()))
    assert sum(found["integrated_gradients"]) == pytest.approx(found["gained"], abs=1e-3)
