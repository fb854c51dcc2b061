"""Several labels a text: training, thresholds and measures, labelling, resuming, through the command line."""

import asyncio
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.errors import UserError
from data.labelled import several
from data.labelled.example import Example
from data.rows import RowLoader
from engine.registry import build_model
from finetune.classify import baselines, classifier
from finetune.classify.classifier import Classifier
from finetune.classify.labeller import load_labeller
from finetune.classify.multi_label import choose_thresholds, measure_sets
from serve import bodies, reading
from tests.conftest import TINY
from tests.helpers import TERM, at_call, configure, metrics, ok, refused, summary, warnings_of
from tests.matrices import matrix

MODULE = "-m finetune.classify"
WORDS = {"red": "rosso", "green": "verde", "blue": "azzurro"}  # a text has the labels whose words are in it
GRU = ("--n-embd", 16, "--n-hidden", 16, "--batch-size", 16, "--lr", 0.02, "--steps", 100, "--eval-interval", 50)
FEW = ("--steps", 4, "--eval-interval", 2, "--batch-size", 16, "--no-baseline")


@pytest.fixture(autouse=True)
def small_bag(monkeypatch):
    monkeypatch.setattr(classifier, "BUCKETS", 256)


def colours(count: int = 240) -> list[tuple[str, list[str]]]:
    """Texts of nonsense, with up to three words that mean a label; about a fifth has none."""
    draw, texts = random.Random(0), []
    for n in range(count):
        labels = [label for label in WORDS if draw.random() < 0.4]
        words = [WORDS[label] for label in labels] + draw.choices(["mop", "wind", "dusk", "pinch"], k=2)
        draw.shuffle(words)
        texts.append((f"{' '.join(words)} {n}", labels))
    return texts


def as_jsonl(texts) -> str:
    return "".join(json.dumps({"text": text, "label": labels}) + "\n" for text, labels in texts)


def as_csv(texts) -> str:
    return "text,label\n" + "".join(f'{text},"{", ".join(labels)}"\n' for text, labels in texts)


@pytest.fixture
def files(tmp_path):
    """The same texts as JSON lines with lists, and as a table with commas between the labels."""
    texts = colours()
    (tmp_path / "colours.jsonl").write_text(as_jsonl(texts), "utf-8")
    (tmp_path / "colours.csv").write_text(as_csv(texts), "utf-8")
    return tmp_path


def test_a_model_from_nothing_learns_every_label_and_reports(cli, files):
    done = ok(cli(MODULE, "--data", "colours.jsonl", *GRU, "--out", "run"))
    found = summary()
    assert "3 classes, any number a text" in done.out and "the thresholds are those of the best F1" in done.out
    assert found["labels"] == ["blue", "green", "red"]
    test = found["test"]
    assert test["micro_f1"] > 0.9 and test["macro_f1"] > 0.9 and 0.7 < test["subset_accuracy"] <= 1
    assert "accuracy" not in test and "confusion" not in test and not Path("run/confusion.png").exists()
    assert "precision  recall      F1  examples  threshold" in done.out
    assert "this model         micro-F1 " in done.out and "  subset accuracy " in done.out
    of_ngrams = found["baselines"]["character n-grams"]
    assert of_ngrams["micro_f1"] > 0.9 > found["baselines"]["majority"]["micro_f1"]
    lines = metrics(Path("run"))
    assert lines[-1]["val_micro_f1"] > lines[0]["val_micro_f1"] and lines[-1]["val_loss"] < 0.5 < lines[0]["val_loss"]
    assert {"val_macro_f1", "val_subset_accuracy"} <= lines[-1].keys()

    one = json.loads(ok(cli(MODULE, "--out", "run", "--predict", "wind rosso azzurro 7")).out)
    assert sorted(one["labels"]) == ["blue", "red"] and list(one) == ["text", "labels", "probabilities"]
    assert one["probabilities"]["red"] > 0.5 > one["probabilities"]["green"]
    none, all_ = ok(cli(MODULE, "--out", "run", "--predict", "-", stdin=b"dusk mop\nverde rosso azzurro\n")).out.split(
        "\n"
    )[:2]
    assert json.loads(none)["labels"] == [] and sorted(json.loads(all_)["labels"]) == ["blue", "green", "red"]

    again = json.loads(ok(cli(MODULE, "--out", "run", "--eval-only")).out)
    assert {name: again[name] for name in test} == test
    whole = ok(cli(MODULE, "--out", "run", "--eval-only", "--data", "colours.csv", "--label-separator", ","))
    assert json.loads(whole.out)["examples"] == 240 and json.loads(whole.out)["micro_f1"] > 0.9


def test_lists_and_a_separator_train_the_same_model(cli, files):
    ok(cli(MODULE, "--data", "colours.jsonl", *GRU[:6], *FEW, "--out", "lists"))
    ok(cli(MODULE, "--data", "colours.csv", "--label-separator", ",", *GRU[:6], *FEW, "--out", "commas"))
    assert summary("lists")["test"] == summary("commas")["test"]
    assert summary("lists")["val_loss"] == summary("commas")["val_loss"]
    ok(cli(MODULE, "--out", "commas", "--eval-only", "--data", "colours.csv"))  # the separator is the run's own


def test_thresholds_belong_to_the_weights_and_decide(cli, files):
    ok(cli(MODULE, "--data", "colours.jsonl", *GRU[:6], *FEW, "--out", "run"))
    classes = summary()["test"]["classes"]
    labeller = load_labeller("run", device="cpu")
    assert labeller.thresholds.tolist() == [each["threshold"] for each in classes.values()]
    assert not (labeller.thresholds == 0.5).any(), "after 4 steps nobody is sure of anything"
    p = labeller([text for text, _ in colours(20)])
    for row in p:
        said = labeller.answer(row)["labels"]
        assert set(said) == {
            name for name, q in zip(labeller.labels, row, strict=True) if q >= classes[name]["threshold"]
        }
        assert said == sorted(said, key=lambda name: -row[labeller.labels.index(name)])
    last = load_labeller("run", "last", "cpu")
    assert last.thresholds.shape == (3,) and last.model.thresholds.dtype == torch.float32


def test_a_server_says_all_labels_that_reach_their_thresholds(cli, files):
    ok(cli(MODULE, "--data", "colours.jsonl", *GRU[:6], *FEW, "--out", "run"))
    served = reading.Labels("run", Path("run"), load_labeller("run", device="cpu"), 0)
    assert served.card()["thresholds"] == served.labeller.thresholds.tolist()
    (found,) = asyncio.run(reading.classify(served, bodies.Classification(input="rosso")))["data"]
    p = np.array(list(found["probabilities"].values()), np.float32)
    assert found["labels"] == served.labeller.answer(p)["labels"] and "label" not in found


def test_interrupted_and_resumed_equals_never_interrupted(cli, files):
    flags = ("--data", "colours.jsonl", *GRU[:6], *FEW[4:], "--steps", 20, "--eval-interval", 5, "--class-weights", 0.5)
    ok(cli(MODULE, *flags, "--out", "whole"))
    with at_call(RowLoader, "deal", 8, TERM):
        assert cli(MODULE, *flags, "--out", "run").code == 143
    before = load_labeller("run", "last", "cpu").thresholds
    ok(cli(MODULE, "--resume", "--out", "run", "--no-baseline"))
    assert summary("run")["test"] == summary("whole")["test"]
    assert [line["val_loss"] for line in metrics(Path("run"))] == [line["val_loss"] for line in metrics(Path("whole"))]
    for which in ("best", "last"):
        ours, theirs = (load_labeller(run, which, "cpu").model.state_dict() for run in ("run", "whole"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and "thresholds" in theirs
    assert not np.array_equal(before, load_labeller("run", "last", "cpu").thresholds)


@pytest.mark.parametrize("model", matrix(["mlp", "cnn", "rnn", "lstm", "gru", "transformer"], ["cnn", "transformer"]))
def test_every_family_learns_from_nothing_and_from_a_run(cli, files, model):
    (files / "text.txt").write_text("".join(f"{text}\n" for text, _ in colours()), "utf-8")
    ok(
        cli(
            "train.py",
            "--model",
            model,
            "--data",
            "text.txt",
            *TINY[model],
            "--steps",
            2,
            "--batch-size",
            4,
            "--out",
            "before",
        )
    )
    start = ("--data", "colours.jsonl", "--init", "before")
    more = ("--look-ahead", 2) if model == "transformer" else ("--pooling", "mean")
    for train, flags in (("all", ("--lm-weight", 0.5)), ("head", ("--label-smoothing", 0.1)), ("lora", more)):
        done = cli(MODULE, *start, "--train", train, *flags, *FEW, "--out", train)
        if train == "lora" and done.code:
            refused(done, "has no linear layers to adapt")
            continue
        again = json.loads(ok(cli(MODULE, "--out", train, "--eval-only")).out)
        assert again["micro_f1"] == summary(ok(done) and train)["test"]["micro_f1"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_binary_cross_entropy_summed_over_classes_and_texts(smoothing):
    torch.manual_seed(0)
    body = build_model(configure(model="gru", n_embd=8, n_hidden=8), 12).double()
    sets, weights = torch.tensor([[-1, -1], [0, 2], [1, -1]]), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    made = Classifier(body, 3, label_sets=sets, class_weights=weights, label_smoothing=smoothing).double()
    tokens, targets = torch.randint(6, 12, (4, 5)), torch.full((4, 5), -1)
    targets[:, 4] = torch.tensor([1, 0, 2, 1])
    out = made.train()(tokens, targets)
    expected = 0.0
    for logits, has in zip(out.logits, ([1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]), strict=True):
        for x, y, weight in zip(logits, has, weights, strict=True):
            y = y * (1 - smoothing) + smoothing / 2
            expected -= weight * y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x)
    assert out.n_tokens == 4 and torch.allclose(out.nll_sum, expected)
    assert torch.allclose(made.probabilities(out.logits), 1 / (1 + (-out.logits).exp()))


def test_measures_are_what_they_are_called():
    p = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.1], [0.4, 0.7, 0.9], [0.1, 0.1, 0.2]], np.float32)
    actual = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    found = measure_sets(p, actual, ["a", "b", "c"], np.array([0.5, 0.5, 0.5], np.float32))
    # a: 1 right of 2 said, 2 there; b: 2 of 2, 2 there; c: 0 of 1, none there
    assert found["micro_f1"] == pytest.approx(2 * 3 / (5 + 4))
    assert found["macro_f1"] == pytest.approx((0.5 + 1) / 2), "a class without examples does not count"
    assert found["subset_accuracy"] == 2 / 4, "an empty set counts like any other"
    a = found["classes"]["a"]
    assert (a["precision"], a["recall"], a["f1"], a["examples"], a["threshold"]) == (0.5, 0.5, 0.5, 2, 0.5)


THRESHOLDS = {
    "apart": ([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0], 0.55),
    "low": ([0.09, 0.05, 0.01, 0.01], [1, 1, 0, 0], 0.03),
    "all": ([0.9, 0.8, 0.6, 0.4], [1, 1, 1, 1], 0.2),
    "none": ([0.9, 0.8, 0.6, 0.4], [0, 0, 0, 0], 0.5),
    "a wrong one among them": ([0.9, 0.7, 0.5, 0.1], [1, 0, 1, 0], 0.3),  # F1 4/5, against 2/3 above it
    "a tie, the lower nearer to 0.5": ([0.9, 0.6, 0.5, 0.4, 0.3], [1, 0, 0, 1, 0], 0.35),  # 2/3 twice
    "a tie, the upper nearer to 0.5": ([0.6, 0.3, 0.2, 0.1], [1, 0, 0, 1], 0.45),
    "equal": ([0.5, 0.5, 0.5, 0.1], [1, 0, 1, 0], 0.3),  # what is equal is above a threshold together
}


@pytest.mark.parametrize("case", THRESHOLDS)
def test_a_threshold_has_the_best_f1_of_its_class(case):
    p, actual, expected = THRESHOLDS[case]
    p, actual = np.array(p, np.float32)[:, None], np.array(actual, bool)[:, None]
    (threshold,) = chosen = choose_thresholds(p, actual)
    assert chosen.dtype == np.float32 and threshold == pytest.approx(expected, abs=1e-6)
    reached = measure_sets(p, actual, ["a"], chosen)["macro_f1"]
    others = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    assert all(measure_sets(p, actual, ["a"], other)["macro_f1"] <= reached for other in others)


def test_between_neighbouring_probabilities_the_threshold_is_the_upper_one():
    high = np.float32(0.3)
    low = np.nextafter(high, np.float32(0))
    assert choose_thresholds(np.array([[high], [low]]), np.array([[True], [False]])) == high


def test_labels_of_one_text_each_do_not_stop_a_run(cli, tmp_path):
    texts = [(f"text {n}", [f"only {n}", "even" if n % 2 else "odd"] if n % 5 == 0 else []) for n in range(60)]
    (tmp_path / "x.jsonl").write_text(as_jsonl(texts), "utf-8")
    ok(cli(MODULE, "--data", "x.jsonl", *GRU[:6], *FEW, "--class-weights", "balanced", "--out", "run"))
    found = summary()
    assert len(found["labels"]) == 14 and found["test"]["classes"]["only 0"]["examples"] == 0


def test_a_published_label_that_training_lacks_counts_as_missed(cli, files):
    (files / "test.jsonl").write_text(as_jsonl([("dusk", ["grey"]), ("rosso", ["red", "grey"])]), "utf-8")
    done = ok(cli(MODULE, "--data", "colours.jsonl", "--test-data", "test.jsonl", *GRU[:6], *FEW, "--out", "run"))
    assert "1 of 4 labels have no training example, and will be missed: grey" in done.err
    assert summary()["test"]["classes"]["grey"]["examples"] == 2
    (files / "new.jsonl").write_text(as_jsonl([("dusk", ["red", "pink"])] * 3), "utf-8")
    again = cli(MODULE, "--out", "run", "--eval-only", "--data", "new.jsonl")
    refused(again, "line 1 has the label 'pink', which training never saw; it knows: blue, green, grey, red")


MISTAKES = {
    "empty separator": (("--data", "colours.csv", "--label-separator", ""), "--label-separator is empty"),
    "a folder": (("--label-separator", ","), "--label-separator is for files; surnames is a folder"),
    "a softmax's loss": (("--data", "colours.jsonl", "--z-loss", 0.1), "--z-loss is for a softmax over the classes"),
    "the same labels": (("--data", "same.jsonl"), "all 30 texts of same have the labels a, b: nothing to learn"),
    "no labels": (
        ("--data", "none.csv", "--label-separator", ","),
        "all 30 texts of none have no label: nothing to learn",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_message(cli, files, case):
    (files / "same.jsonl").write_text(as_jsonl([(f"t{n}", ["a", "b"][:: n % 2 * 2 - 1]) for n in range(30)]), "utf-8")
    (files / "none.csv").write_text(as_csv([(f"t{n}", []) for n in range(30)]), "utf-8")
    flags, message = MISTAKES[case]
    refused(cli(MODULE, *flags, *FEW, "--out", "run"), message)


def test_a_run_of_one_label_a_text_takes_no_lists(cli, files):
    (files / "one.tsv").write_text("".join(f"{'ab'[n % 2]}\ttext {n}\n" for n in range(60)), "utf-8")
    ok(cli(MODULE, "--data", "one.tsv", *GRU[:6], *FEW, "--out", "run"))
    facts = json.loads(Path("run/config.json").read_text("utf-8"))
    assert facts["classify"] == {"labels": ["a", "b"]} and "accuracy" in summary()["test"]
    assert "thresholds" not in load_labeller("run", device="cpu").model.state_dict()
    again = cli(MODULE, "--out", "run", "--eval-only", "--data", "colours.jsonl")
    refused(again, "colours.jsonl line 1 has a list of labels; a text of run has one label")


def test_labels_that_look_like_lists_are_pointed_out(cli, files, tmp_path):
    texts = [(f"text {n}", label) for n, label in enumerate(["2", "3", "2,3", "3,2"] * 8)]
    (tmp_path / "emotions.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in texts), "utf-8")
    done = ok(cli(MODULE, "--data", "emotions.tsv", *GRU[:6], *FEW, "--out", "run"))
    (said,) = [line for line in warnings_of(done) if "look like lists" in line]
    assert (
        "the labels of 16 texts look like lists of labels, as '2,3' does: --label-separator ',' reads them so" in said
    )
    done = ok(cli(MODULE, "--data", "emotions.tsv", "--label-separator", ",", *GRU[:6], *FEW, "--out", "sets"))
    assert "look like" not in done.err and summary("sets")["labels"] == ["2", "3"]
    done = ok(cli(MODULE, "--data", "emotions.tsv", "--label-separator", ";", *GRU[:6], *FEW, "--out", "wrong"))
    assert "no text of emotions has two labels with the --label-separator ';' between them" in done.err
    cities = [Example("", label, "") for label in ("Paris, France", "Lyon, France", "Rome, Italy") * 5]
    assert several.hint(cities) == ""
    with pytest.raises(UserError, match="all 2 texts of x have no label"):
        several.check_can_learn([Example("a", "", "", ())] * 2, "x")


def test_the_baseline_takes_one_regression_a_class():
    texts, others = ["aaa", "aab", "bbb", "cdc"] * 8, ["aba", "dcd", "bb"]
    labels = np.array([[0, -1], [0, 1], [1, -1], [-1, -1]] * 8)
    parts, _ = baselines.ngram_logits(texts, labels, others, 2)
    p = torch.cat(list(parts)).sigmoid()
    assert (p > 0.5).tolist() == [[True, True], [False, False], [False, True]]


def test_two_processes_train_the_same(cli, ranks, files):
    words = ("--data", "colours.jsonl", *GRU[:4], "--ngrams", 0, "--dropout", 0, *FEW)
    ok(cli(MODULE, *words, "--out", "alone"))
    ended = [process.wait() for process in ranks(2, MODULE, *words, "--out", "together")]
    assert [each.code for each in ended] == [0, 0], ended[0].err
    alone, together = (metrics(Path(run))[-1] for run in ("alone", "together"))
    assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
    assert (
        json.loads(ok(cli(MODULE, "--out", "together", "--eval-only")).out)["micro_f1"]
        == summary("together")["test"]["micro_f1"]
    )
    shutil.rmtree("together/best")
    assert load_labeller("together", "last", "cpu").thresholds.shape == (3,)
