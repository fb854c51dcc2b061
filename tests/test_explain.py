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
from explain.saliency import integrated_gradients, log_probabilities, saliency
from explain.subject import Subject
from finetune.classify.classifier import Classifier
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


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_the_gates_of_a_first_layer_are_those_of_the_papers(family):
    """From the weights alone, a unit at a time, as the equations of torch.nn.GRU and torch.nn.LSTM have it."""
    recurrent = model("--model", family, "--n-layer", "1", "--n-hidden", "8", "--n-embd", "5")
    tokens = torch.randint(6, 20, (7,))
    found = gates_of(recurrent, tokens)
    layer, H = recurrent.layers[0], 8
    W, U, b, c = (getattr(layer, f"{name}_l0").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = memory = torch.zeros(H)
    for t, x in enumerate(recurrent.wte.weight[tokens].detach()):
        whole = {
            name: (W[n * H : n * H + H] @ x + b[n * H : n * H + H] + U[n * H : n * H + H] @ h + c[n * H : n * H + H])
            for n, name in enumerate(("input", "forget", "cell", "output") if family == "lstm" else ("reset", "update"))
        }
        for name in found:
            torch.testing.assert_close(found[name][0, t], whole[name].sigmoid().detach(), atol=1e-6, rtol=1e-5)
        if family == "lstm":
            memory = whole["forget"].sigmoid() * memory + whole["input"].sigmoid() * whole["cell"].tanh()
            h = whole["output"].sigmoid() * memory.tanh()
        else:
            new = (W[2 * H :] @ x + b[2 * H :] + whole["reset"].sigmoid() * (U[2 * H :] @ h + c[2 * H :])).tanh()
            h = (1 - whole["update"].sigmoid()) * new + whole["update"].sigmoid() * h
    torch.testing.assert_close(recurrent.hidden(tokens[None], None, None)[1]["h0"][0].detach(), h)


@pytest.mark.parametrize("family, labels", [("transformer", 0), ("gru", 0), ("mlp", 0), ("gru", 12)])
def test_integrated_gradients_are_those_of_captum(family, labels):
    captum = pytest.importorskip("captum.attr")
    whole = model("--model", family, "--n-layer", "2")
    classifier = Classifier(whole, labels, ngrams=2).eval() if labels else None
    if classifier is not None:
        torch.nn.init.normal_(classifier.head.weight, std=0.5)
    subject = Subject("run", family, whole, classifier, ["x"] * labels, CharTokenizer("abcdefghijklmn"), True)
    tokens, answer = torch.randint(6, 20, (8,)), 9
    ours, gained = integrated_gradients(subject, tokens, answer)
    table = whole.wte

    def forward(vectors):  # (B, T, C) in place of the embeddings, each row by itself
        found = []
        for x in vectors:
            hook = table.register_forward_hook(lambda _, __, out, x=x: torch.cat([out[:, : -len(x)], x[None]], 1))
            found.append(log_probabilities(subject, tokens[None])[0, answer])
            hook.remove()
        return torch.stack(found)

    whole_way = table(tokens)[None].detach()
    start = table.weight.detach().mean(0).expand_as(whole_way)
    theirs, left = captum.IntegratedGradients(forward).attribute(
        whole_way, start, n_steps=128, return_convergence_delta=True
    )
    torch.testing.assert_close(ours, theirs[0].sum(1).float(), atol=1e-3, rtol=1e-3)
    assert abs(float(left)) < 1e-3 and float(ours.sum()) == pytest.approx(gained, abs=1e-3)


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


def test_the_letter_that_makes_a_label_is_what_turns_it(cli, spam):
    done = ok(cli(MODULE, "spam", "--what", "adversarial", "--text", "wordxc"))
    found = json.loads(Path("explained/adversarial.json").read_text())
    assert (found["answer"], found["now"], found["turned"], found["changes"]) == ("spam", "ham", True, 1)
    assert "x" not in found["changed"] and f"to {found['changed'][4]!r}" in done.out.replace("left out", "to 'c'")
    first, last = (step["probabilities"] for step in found["steps"])
    assert sum(last.values()) == pytest.approx(1, abs=1e-5) and first["spam"] > 0.5 > last["spam"]
    predicted = ok(cli("-m finetune.classify", "--out", "spam", "--predict", found["changed"]))
    assert json.loads(predicted.out)["probabilities"]["ham"] == pytest.approx(last["ham"], abs=1e-5)
    assert Path("explained/adversarial.png").exists()


def test_of_many_texts_the_share_that_is_turned(cli, spam):
    words = (MODULE, "spam", "--what", "adversarial", "--max-changes", 1)
    ok(cli(*words))  # its own test examples
    own = json.loads(Path("explained/adversarial.json").read_text())
    assert own["texts"] == 8 and [row["changes"] for row in own["by_changes"]] == [0, 1]
    assert own["by_changes"][0]["turned"] == 0 and own["by_changes"][1]["turned"] >= 0.5
    for row in own["by_changes"]:
        assert 0 <= row["interval"][0] <= row["turned"] <= row["interval"][1] <= 1
        assert row["accuracy"] == pytest.approx(own["right"] / 8 * (1 - row["turned"]))
    Path("more.csv").write_text("said,kind\nwordxa,spam\nwordob,ham\nwordxd,ham\n")
    ok(cli(*words, "--data", "more.csv", "--text-column", "said", "--label-column", "kind"))
    more = json.loads(Path("explained/adversarial.json").read_text())
    assert (more["texts"], more["right"], more["examples"][2]["changes"]) == (3, 2, 0)
    assert "drawn at random" in ok(cli(*words, "--texts", 2)).err
    Path("foreign.tsv").write_text("egg\tworda\nham\twordb\n")
    refused(cli(*words, "--data", "foreign.tsv"), "the label 'egg', which training never saw")
    refused(cli(*words, "--text", "a", "--texts", 2), "--texts means nothing to one --text")
    refused(cli(*words[:-1], "0", "--text", "a"), "is no number from 1")


def test_accuracy_of_a_classifier_by_group(cli, spam):
    rows = [f"word{'x' if n % 2 else 'o'}a,{'spam' if n % 2 or n % 8 == 0 else 'ham'},{'odd' if n % 2 else 'even'}"
            for n in range(80)]  # fmt: skip
    Path("groups.csv").write_text("\n".join(["text,label,kind", *rows, "wordxb,spam,rare"]))
    done = ok(cli(MODULE, "spam", "--what", "groups", "--data", "groups.csv", "--group-column", "kind"))
    found = json.loads(Path("explained/groups.json").read_text())
    assert [(row["group"], row["texts"], row["figure"]) for row in found["groups"]] == [
        ("even", 40, 0.75), ("odd", 40, 1.0), ("rare", 1, 1.0),
    ]  # fmt: skip
    low, high = found["groups"][0]["interval"]  # Wilson's of 30 of 40
    assert (low, high) == (pytest.approx(0.5981, abs=1e-3), pytest.approx(0.8581, abs=1e-3))
    assert "only 1: says little" in done.out and found["figure"] == pytest.approx(71 / 81)
    refused(cli(MODULE, "spam", "--what", "groups", "--data", "groups.csv", "--group-column", "colour"), "no column")
    ok(cli(MODULE, "spam", "--what", "groups"))  # its own test examples by label
    own = json.loads(Path("explained/groups.json").read_text())
    assert {row["group"]: row["texts"] for row in own["groups"]} == {"ham": 4, "spam": 4}
    refused(cli(MODULE, "spam", "--what", "groups", "--group-column", "kind"), "nothing without --data")


@pytest.mark.parametrize(
    "family", matrix(["transformer", "gru", "lstm", "rnn", "mlp", "cnn", "bigram"], ["transformer", "mlp"])
)
def test_every_family_is_shown_or_refused_with_the_reason(cli, names, family):
    ok(cli("train.py", *quick(family, data="names.txt", out="run")))
    shown = {
        "attention": family == "transformer", "gates": family in ("gru", "lstm"),
        "lens": family in ("transformer", "gru", "lstm", "rnn"), "saliency": family != "bigram",
        "embeddings": family != "bigram", "neurons": family != "bigram",
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
