"""`--extend-vocabulary`: characters that the run of --init does not know get ids and rows of their own."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.tokenizers import CharTokenizer
from data.vocabulary import from_json
from engine import load_run
from engine.registry import build_model
from engine.training.extend import load_extended
from engine.training.trainer import Trainer
from tests.conftest import NAMES, TINY
from tests.helpers import INT, at_call, left, ok, quick, refused, summary, warnings_of
from tests.matrices import matrix

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run
CAPITALS = "\n".join(name.capitalize() for name in NAMES) + "\n"  # new: some capitals
NEW = "".join(sorted({name[0].upper() for name in NAMES}))
TUNE = ["--steps", 4, "--eval-interval", 2, "--batch-size", 4, "--warmup", 0]
EXTEND = ["train.py", "--init", "run", "--extend-vocabulary", "--data", "capitals.txt", "--kind", "lines", *TUNE]


@pytest.fixture(autouse=True)
def capitals(tmp_path):
    (tmp_path / "capitals.txt").write_text(CAPITALS)


def parent(cli, model: str = "mlp", *flags) -> None:
    ok(cli("train.py", *quick(model, data="names.txt", kind="lines"), *flags))


def alphabet(run: str) -> str:
    return json.load(open(f"{run}/tokenizer.json"))["characters"]


@pytest.mark.parametrize("model", [*TINY, "transformer untied", "transformer valued", "mlp mixed", "gru hashed"])
def test_old_ids_keep_their_weights_and_new_ones_start_as_the_mean(cli, model):
    family, *extra = model.split()
    extra = (
        {
            "untied": ["--no-tie-head"],
            "valued": ["--value-embeddings", "--n-layer", 2],
            "mixed": ["--mix-ngram", 3],
            "hashed": ["--hash-ngrams", 3],
        }[extra[0]]
        if extra
        else []
    )
    parent(cli, family, *extra)
    before = load_run("run")
    ids = before.tokenizer.extended("XY")
    grown = build_model(before.config, ids.vocab_size)
    load_extended(grown, before.model)
    own, V, checked = before.model.state_dict(), before.tokenizer.vocab_size, 0
    for name, weight in grown.state_dict().items():
        if name.startswith("counts."):
            continue
        old = own[name]
        for dim in [d for d in range(old.ndim) if weight.shape[d] != old.shape[d]]:
            assert (weight.shape[dim], old.shape[dim]) == (V + 2, V)
            mean = weight.narrow(dim, 6, V - 6).mean(dim, keepdim=True)
            assert torch.allclose(weight.narrow(dim, V, 2), mean.expand_as(weight.narrow(dim, V, 2)), atol=1e-6)
            checked += 1
        assert torch.equal(weight[tuple(slice(n) for n in old.shape)], old), name
    assert checked == {"bigram": 2, "transformer": 1}.get(model, 2 if family == "transformer" else 3)


@pytest.mark.parametrize("model", matrix(["bigram", "gru", "transformer", "mlp mixed"], ["bigram", "transformer"]))
def test_a_run_extends_and_resumes_and_evaluates(cli, model):
    family, *mixed = model.split()
    parent(cli, family, *(["--mix-ngram", 3] if mixed else []))
    told = ok(cli(*EXTEND, "--out", "whole"))
    known = alphabet("run")
    added = alphabet("whole").removeprefix(known)
    assert added and set(added) <= set(NEW) and list(added) == sorted(added)
    assert f"{len(added)} characters added to the vocabulary of {len(known)} ('A'" in told.out
    assert not [line for line in warnings_of(told) if "training text" in line]
    with at_call(Trainer, "backward", 3, INT):
        assert cli(*EXTEND, "--out", "part").code == 130
    for store in Path(os.environ["CHARLM_CACHE"], "prepared").glob("capitals*"):
        shutil.rmtree(store)  # the text is prepared anew, and is the same
    ok(cli("train.py", "--resume", "--out", "part"))
    assert left(Path("part")) == left(Path("whole"))
    (line,) = ok(cli("train.py", "--eval-only", "--out", "whole")).out.splitlines()
    assert json.loads(line)["val_loss"] == pytest.approx(summary("whole")["val_loss"], abs=1e-6)
    ok(cli("sample.py", "whole", "--prompt", added[:2], "--num", 1))


def test_without_the_flag_it_is_named_and_without_need_nothing_is_added(cli):
    parent(cli)
    plain = [word for word in EXTEND if word != "--extend-vocabulary"]
    told = warnings_of(ok(cli(*plain, "--out", "plain")))
    assert [line for line in told if "--extend-vocabulary" in line] and alphabet("plain") == alphabet("run")
    again = ["--data", "names.txt", "--overwrite", "--out", "plain"]
    assert not warnings_of(ok(cli(*plain, *again)))
    assert "0 characters added to the vocabulary of " in ok(cli(*EXTEND, *again)).out
    assert alphabet("plain") == alphabet("run")
    piped = ok(cli(*EXTEND, "--data", "-", "--overwrite", "--out", "plain", stdin=CAPITALS.encode()))
    assert "characters added" in piped.out and "0 characters added" not in piped.out


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:270"])
def test_a_vocabulary_that_knows_every_character_is_refused(cli, tokenizer):
    parent(cli, "mlp", "--tokenizer", tokenizer)
    name = tokenizer.split(":")[0]
    refused(cli(*EXTEND, "--out", "new"), f"--extend-vocabulary: the {name} vocabulary of run", "leave it out")
    assert not Path("new").exists()
    refused(cli("train.py", "--data", "names.txt", "--extend-vocabulary"), "--extend-vocabulary goes with --init")


TUNED = [*itertools.product(["classify"], ["all", "head", "last:1", "lora"]), ("instruct", "all"), ("instruct", "lora")]


@pytest.mark.parametrize("tuning", matrix(TUNED, [("classify", "lora"), ("instruct", "all")]), ids="-".join)
def test_fine_tuning_trains_the_new_rows_under_every_train(cli, tuning):
    command, train = tuning
    parent(cli, "transformer", "--context", 40)
    rows = "".join(f"{label}\t{word} {name}\n" for name in NAMES for label, word in (("a", "SEE"), ("b", "win")))
    Path("rows.tsv").write_text(rows)
    said = [json.dumps({"prompt": f"X {name}", "completion": f"Hi {name}"}) for name in NAMES]
    Path("said.jsonl").write_text("\n".join(said))
    data = "rows.tsv" if command == "classify" else "said.jsonl"
    words = [f"-m finetune.{command}", "--init", "run", "--train", train, "--data", data, *TUNE, "--lr", 0.01]
    refused(cli(*words, "--out", "tuned"), "vocabulary of run; --extend-vocabulary gives those of the training text")
    told = ok(cli(*words, "--extend-vocabulary", "--out", "whole"))
    assert "characters added to the vocabulary of" in told.out and alphabet("whole").startswith(alphabet("run"))
    weights = load_file("whole/last/model.safetensors")
    (table,) = [weight for name, weight in weights.items() if name.endswith("wte.weight")]
    assert not torch.equal(table[-1], table[-2])  # they began alike
    ok(cli(*words, "--extend-vocabulary", "--out", "part", "--steps", 2, "--schedule", "constant"))
    ok(cli(*words, "--extend-vocabulary", "--out", "again", "--schedule", "constant"))
    ok(cli(f"-m finetune.{command}", "--resume", "--out", "part", "--steps", 4))
    assert left(Path("part")) == left(Path("again"))
    ok(cli(f"-m finetune.{command}", "--eval-only", "--out", "whole"))


def test_an_extended_vocabulary_keeps_its_order_in_its_json():
    grown = CharTokenizer("mz").extended("za")
    assert grown.alphabet == "mza" and grown.encode("mza").tolist() == [6, 7, 8]
    again = from_json(json.loads(json.dumps(grown.to_json())))
    assert again.alphabet == "mza" and again.decode(again.encode("zam")) == "zam"
    assert from_json(CharTokenizer("zma").to_json()).alphabet == "amz"


def test_a_classifier_of_the_bundled_surnames_starts_from_a_run_on_the_bundled_names(cli):
    quickly = ["--steps", 1, "--eval-interval", 1]
    ok(cli("train.py", *TINY["transformer"], *quickly, "--eval-tokens", 100, "--out", "base"))
    tuned = ok(cli("-m finetune.classify", "--init", "base", *quickly, "--out", "tuned"))
    assert "76 characters added to the vocabulary of 26" in tuned.out


def test_where_no_character_is_new_nothing_is_said_and_no_table_is_trained(cli, few_strings):
    quickly = ["--steps", 1, "--eval-interval", 1, "--max-answer", 1]
    ok(cli("-m finetune.instruct", *TINY["transformer"], *quickly, "--out", "base"))
    tuned = ok(cli("-m finetune.instruct", "--init", "base", "--train", "lora", *quickly, "--out", "tuned"))
    assert "added to the vocabulary" not in tuned.out
    trained = load_file("tuned/last/model.safetensors")
    assert trained and all("lora" in name for name in trained)
    ok(cli("-m finetune.instruct", "--resume", "--out", "tuned", "--steps", 2))
