"""--activation-checkpointing: the same bits with less kept, and where it means nothing."""

import json
from pathlib import Path

import pytest
import torch

from data.batches import Batch
from data.end_to_end import end_to_end
from data.tokenizers import Special
from engine.distributed import sharding
from engine.registry import build_model
from nanogpt.model import Transformer
from tests.helpers import LINES, STREAM, configure, left, ok, quick, refused

pytestmark = pytest.mark.usefixtures("names", "text")
RUNS = {
    "stream": STREAM,
    "lines, dropout": LINES | {"dropout": 0.2},
    "hashes": STREAM | {"hash_ngrams": 3, "hash_rows": 64, "dropout": 0.1},
    "mixture": LINES | {"mix_ngram": 3, "dropout": 0.1},
    "accumulated": STREAM | {"grad_accum": 2, "dropout": 0.1},
    "values of the first block, and embedded ones": LINES | {"value_residual": True, "value_embeddings": True},
    "Muon in bfloat16": STREAM | {"dtype": "bfloat16", "optimizer": "muon", "dropout": 0.1},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_has_the_same_bits(cli, tmp_path, kind):
    ok(cli("train.py", *quick("transformer", **RUNS[kind], steps=4, eval_interval=2)))
    plain = left(tmp_path / "run")
    ok(
        cli(
            "train.py",
            *quick("transformer", **RUNS[kind], steps=4, eval_interval=2, out="less", activation_checkpointing=True),
        )
    )
    assert left(tmp_path / "less") == plain
    assert json.loads(Path("less/config.json").read_text())["config"]["activation_checkpointing"] is True


def test_a_resume_may_turn_it_on(cli, tmp_path):
    flags = STREAM | {"dropout": 0.1, "steps": 6}
    ok(cli("train.py", *quick("transformer", **flags)))
    ok(cli("train.py", *quick("transformer", **flags | {"steps": 3, "out": "two", "schedule": "constant"})))
    ok(cli("train.py", *quick("transformer", **flags | {"out": "one", "schedule": "constant"})))
    ok(cli("train.py", "--resume", "--out", "two", "--steps", 6, "--activation-checkpointing"))
    assert left(tmp_path / "two") == left(tmp_path / "one")


def kept(model: Transformer, *read, **options) -> tuple[int, list[torch.Tensor]]:
    """Bytes that a forward pass keeps for the backward one, weights apart, and the gradients."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    bytes_: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            bytes_[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(*read, want_logits=False, **options)
    assert out.state == {} or not model.recomputes
    out.nll_sum.backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return sum(bytes_.values()), gradients


def model_of(**options) -> Transformer:
    sizes = {"n_layer": 6, "n_embd": 32, "n_head": 2, "context": 16, "dropout": 0.2, "zero_init": False}
    return build_model(configure(model="transformer", **sizes | options), 20, Special()).train()


def test_a_fraction_is_kept_and_the_gradients_are_the_same():
    model, tokens = model_of(), torch.randint(6, 20, (3, 16))
    much, plain = kept(model, tokens, tokens)
    model.recomputes = True
    little, again = kept(model, tokens, tokens)
    assert little < 0.3 * much
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


def test_rows_laid_end_to_end_have_the_same_gradients(monkeypatch):
    model = model_of(attention="triton", dropout=0.1, n_layer=2)
    tokens = torch.randint(6, 20, (3, 8)).numpy()
    targets = tokens.copy()
    targets[0, 5:] = -1
    batch = end_to_end(Batch(tokens, targets, int((targets != -1).sum()))).to(torch.device("cpu"))
    read, options = (batch.tokens, batch.targets), {"starts": batch.starts}
    _, plain = kept(model, *read, **options)
    model.recomputes = True
    _, again = kept(model, *read, **options)
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


def test_evaluation_and_decoding_are_as_without():
    model, tokens = model_of(activation_checkpointing=True).eval(), torch.randint(6, 20, (1, 9))
    state = model.read(tokens).state
    assert "k0" in state
    assert model.stepper(state)(tokens[:, 0]).shape == (1, 20)


def test_it_compiles():
    model, tokens = model_of(n_layer=2, dropout=0.0), torch.randint(6, 20, (3, 16))
    _, plain = kept(model, tokens, tokens)
    model.recomputes = True
    compiled = torch.compile(model, fullgraph=True)
    compiled(tokens, tokens, want_logits=False).nll_sum.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], plain)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (quick("gru", **LINES), ("--activation-checkpointing means nothing to --model gru",)),
        (["--model", "ngram", "--data", "names.txt"], ("--activation-checkpointing means nothing to --model ngram",)),
        (quick("transformer", **LINES, norm="batch"), ("--norm batch would take its statistics twice",)),
    ],
    ids=["gru", "ngram", "batch norm"],
)
def test_where_it_means_nothing_it_is_refused(cli, flags, words):
    refused(cli("train.py", *flags, "--activation-checkpointing"), *words)


@pytest.mark.parametrize("way", [["--shard"], ["--grad-accum", 2]], ids=["sharded", "micro-batches dealt"])
def test_several_processes_have_the_same_bits_with_it(ranks, monkeypatch, tmp_path, way):
    monkeypatch.setattr(sharding, "OWN_GROUP", 1)  # every block is gathered by itself
    for out, more in (("plain", []), ("less", ["--activation-checkpointing"])):
        words = quick("transformer", **STREAM, dropout=0.1, steps=4, eval_interval=2, out=out)
        for process in ranks(2, "train.py", *words, *way, *more):
            ok(process.wait())
    assert left(tmp_path / "less") == left(tmp_path / "plain")
