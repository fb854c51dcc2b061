"""Classification: pooling, padding, the loss, LoRA, what is trained, and the measures."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.batches import IGNORE
from engine.registry import build_model
from engine.run.weights import trained_weights
from engine.training.lora import LoRALinear, add_lora
from engine.training.optimizers import make_optimizers
from finetune.classify import baselines, measure
from finetune.classify.build import class_weights, freeze_all_but
from finetune.classify.classifier import POOLINGS, Classifier, NGramBag
from tests.helpers import configure

VOCAB, CLASSES = 17, 3
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_hidden": 8, "order": 3, "context": 16, "activation": "tanh"}
FAMILIES = ("bigram", "mlp", "cnn", "rnn", "lstm", "gru", "transformer")


def body_of(model: str = "transformer", **options):
    torch.manual_seed(0)
    body = build_model(configure(model=model, **{"norm": "none", **SMALL, **options}), VOCAB).double()
    for weight in body.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return body


def classifier(model: str = "transformer", pooling: str = "last", **options) -> Classifier:
    made = Classifier(body_of(model), CLASSES, pooling=pooling, **options).double()
    nn.init.normal_(made.head.weight)
    return made.eval()


def batch(lengths=(3, 7, 1, 5), padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    T = max(lengths) + padding
    tokens = torch.randint(6, VOCAB, (len(lengths), T), generator=generator)
    targets = torch.full_like(tokens, IGNORE)
    for row, length in enumerate(lengths):
        targets[row, length - 1] = row % CLASSES
    return tokens, targets


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("model", FAMILIES)
def test_what_stands_in_the_padding_changes_nothing(model, pooling):
    made = classifier(model, pooling)
    tokens, targets = batch()
    whole = made(tokens, targets).logits
    for row, length in enumerate((3, 7, 1, 5)):
        alone = made(tokens[row : row + 1, :length], targets[row : row + 1, :length]).logits
        assert torch.allclose(whole[row], alone[0], atol=1e-9)
    more = torch.cat([tokens, torch.randint(6, VOCAB, (4, 5))], 1), F.pad(targets, (0, 5), value=IGNORE)
    assert torch.allclose(made(*more).logits, whole, atol=1e-9)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_what_it_says(pooling):
    made, (tokens, targets) = classifier("gru", pooling), batch((4,))
    hidden = made.body.hidden(tokens, None, None)[0][0]
    pooled = {"last": hidden[-1], "mean": hidden.mean(0), "max": hidden.amax(0)}[pooling]
    assert torch.allclose(made(tokens, targets).logits[0], made.head.weight @ pooled)


def test_a_z_loss_is_that_of_the_class_logits_in_training_only():
    (plain, pulled), given = (classifier(z_loss=z) for z in (0.0, 0.5)), batch()
    out = plain(*given)
    assert torch.equal(pulled(*given).nll_sum, out.nll_sum)
    expected = out.nll_sum + 0.5 * out.logits.logsumexp(-1).square().sum()
    assert torch.allclose(pulled.train()(*given).nll_sum, expected)


def test_the_loss_is_the_weighted_cross_entropy_summed_over_rows():
    weights = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    made, (tokens, targets) = classifier(class_weights=weights), batch()
    out = made(tokens, targets)
    log_p = out.logits.log_softmax(-1)
    assert out.n_tokens == 4
    assert torch.allclose(out.nll_sum.double(), -sum(weights[y] * log_p[row, y] for row, y in enumerate((0, 1, 2, 0))))
    assert made(tokens, targets, want_logits=False).logits is None


def test_the_language_loss_is_added_in_training_only():
    made, (tokens, targets) = classifier(lm_weight=0.5), batch()
    plain = made(tokens, targets).nll_sum
    logits = made.body(tokens).logits.log_softmax(-1)
    each = [logits[b, t, tokens[b, t + 1]] for b, n in enumerate((3, 7, 1, 5)) for t in range(n - 1)]
    assert torch.allclose(made.train()(tokens, targets).nll_sum, plain - 0.5 * 4 * torch.stack(each).mean(), atol=1e-5)


@pytest.mark.parametrize("model", FAMILIES)
def test_training_reaches_the_body_and_lowers_the_loss(model):
    made, (tokens, targets) = classifier(model).train(), batch()
    optimizer, losses = torch.optim.Adam(made.parameters(), 0.01), []
    for _ in range(100):
        optimizer.zero_grad()
        loss = made(tokens, targets, want_logits=False).nll_sum
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("bias", [True, False])
def test_lora_starts_as_the_layer_itself_and_merges_exactly(bias):
    torch.manual_seed(0)
    base, x = nn.Linear(12, 20, bias), torch.randn(5, 12)
    plain = base(x)
    layer = LoRALinear(base, rank=4, alpha=12.0)
    assert torch.equal(layer(x), plain)
    nn.init.normal_(layer.lora_b)
    expected = plain + 12.0 / 4 * x @ layer.lora_a.T @ layer.lora_b.T
    assert torch.allclose(layer(x), expected, atol=1e-5)
    apart, weight = layer(x), base.weight.clone()
    for _ in range(2):  # merging twice adds it once
        layer.merge()
    assert not torch.equal(base.weight, weight) and torch.allclose(layer(x), apart, atol=1e-5)
    for _ in range(2):
        layer.unmerge()
    assert torch.allclose(base.weight, weight, atol=1e-6) and torch.allclose(layer(x), apart, atol=1e-6)


def test_lora_trains_a_few_weights_of_every_linear_layer_and_saves_them_alone():
    body = body_of("transformer", n_embd=32)
    add_lora(body, rank=2, alpha=4.0)
    assert sum(isinstance(module, LoRALinear) for module in body.modules()) == 2 * 4
    kept = trained_weights(body)
    assert set(kept) == {name for name in body.state_dict() if ".lora_" in name}
    assert sum(t.numel() for t in kept.values()) < 0.15 * sum(p.numel() for p in body.parameters())


def some_step(model: Classifier) -> set[str]:
    """The parameters that one training step moves."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    tokens, targets = batch()
    model.train()(tokens, targets, want_logits=False).nll_sum.backward()
    for optimizer in make_optimizers(model, configure(lr=0.1).optim):
        optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("model", ["mlp", "cnn", "gru", "transformer"])
def test_frozen_layers_stay_as_they_are(model):
    head_only = classifier(model)
    freeze_all_but(head_only.body, 0)
    assert some_step(head_only) == {"head.weight"}
    last = classifier(model)
    freeze_all_but(last.body, 1)
    moved = some_step(last)
    assert "head.weight" in moved and any(".1." in name for name in moved)
    assert not any(".0." in name or "wte" in name or "wpe" in name for name in moved)


def test_hashed_n_grams_are_embeddings_and_stay_frozen_too():
    body = body_of("gru", hash_ngrams=3, hash_rows=20)
    freeze_all_but(body, 1)
    trained = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("layers.1.") for name in trained) and not any("ngrams" in name for name in trained)


def test_muon_takes_no_head():
    model = classifier("gru", lm_weight=0.5)
    muon, adamw = make_optimizers(model, configure(optimizer="muon").optim)
    by_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert {id(model.head.weight), id(model.body.lm_head.weight)} <= by_adamw
    assert len(muon.param_groups[0]["params"]) == 4


def test_measures_are_what_they_are_called():
    found = measure.measure(np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 2]), ["a", "b", "c", "d"])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["confusion"] == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    b = found["classes"]["b"]
    assert (b["precision"], b["recall"], b["f1"], b["examples"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))
    assert found["classes"]["d"]["f1"] == 0.0
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 1) / 3), "a class without examples does not count"


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 3.0), (1.0, 9.0)])
def test_class_weights_favour_the_rare_and_mean_one(power, ratio):
    weights = class_weights(power, np.array([0] * 90 + [1] * 10), 2)
    assert weights[1] / weights[0] == pytest.approx(ratio)
    assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1)


def test_the_bag_counts_ngrams_wherever_they_stand_and_leaves_padding_out():
    torch.manual_seed(0)
    bag = NGramBag(3).eval()
    read = torch.ones(1, 4, dtype=torch.bool)
    x = bag(torch.tensor([[7, 8, 9, 7]]), read)
    padded = bag(torch.tensor([[7, 8, 9, 7, 3, 3]]), torch.tensor([[True] * 4 + [False] * 2]))
    assert torch.allclose(x, padded, atol=1e-6)
    assert not torch.allclose(x, bag(torch.tensor([[8, 7, 9, 7]]), read), atol=1e-3), "order matters"
    alone = NGramBag(1).eval()
    assert torch.allclose(
        alone(torch.tensor([[8, 7, 9, 7]]), read), alone(torch.tensor([[7, 8, 9, 7]]), read), atol=1e-6
    )


def test_the_majority_baseline_is_the_most_frequent_class():
    assert baselines.majority(np.array([2, 1, 2]), np.zeros(4), 3).tolist() == [2] * 4


def test_the_ngram_baseline_learns_what_letters_tell():
    vowels = ["aeiou", "eia", "oua", "iiu", "uoe", "aai"] * 5
    others = ["bcd", "dfg", "tpk", "rst", "mnb", "kkp"] * 5
    labels = np.array([0] * 30 + [1] * 30)
    predicted, _ = baselines.ngram_baseline(vowels + others, labels, ["oiae", "gfd", "uua", "pkt"], 2)
    assert predicted.tolist() == [0, 1, 0, 1]


def test_the_ngram_baseline_has_weights_for_what_occurs_alone_and_reads_texts_in_parts(monkeypatch):
    texts, labels, sizes = ["ab", "ba", "abc", "cb"] * 3, np.array([0, 1, 0, 1] * 3), []
    whole, _ = baselines.ngram_baseline(texts, labels, ["abca", "bb", ""], 2)
    fit = baselines._fit
    monkeypatch.setattr(baselines, "_fit", lambda *given: sizes.append(given[1:3]) or fit(*given))
    monkeypatch.setattr(baselines, "LOGITS", 10)  # five texts at a time
    assert baselines.ngram_baseline(texts, labels, ["abca", "bb", ""], 2)[0].tolist() == whole.tolist()
    padded = [f" {text} " for text in texts]
    distinct = {text[i : i + n] for text in padded for n in range(1, 5) for i in range(len(text) - n + 1)}
    assert sizes == [(len(distinct), 2)]


@functools.cache
def shown() -> dict:
    return measure.measure(np.array([0, 1, 1]), np.array([0, 1, 0]), ["$a^", "漢字"])


def test_the_table_and_the_picture_show_any_label(tmp_path):
    assert "$a^" in measure.table(shown()) and "0.667" in measure.table(shown())
    measure.draw_confusion(shown(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
