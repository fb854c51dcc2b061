"""Classifiers in `transformers`: the probabilities of `--predict`, by its pipeline, with the run's labels."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.helpers import ok, refused, summary

MODULE = "-m finetune.classify"
WORDS = {"spam": ["win", "free", "cash", "prize", "claim"], "ham": ["see", "you", "home", "soon", "love"]}
QUICK = ("--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--steps", 20, "--batch-size", 8, "--ngrams", 0, "--lr", 0.01)
LAYOUTS = {
    "qwen3": (),
    "llama": ("--norm", "rms", "--activation", "swiglu", "--no-qk-norm", "--bias"),
    "gpt2": ("--positions", "learned", "--norm", "layer", "--bias", "--no-qk-norm", "--activation", "gelu",
             "--no-tie-head"),
}  # fmt: skip


@pytest.fixture
def sms(tmp_path):
    """A table of 60 messages that five words a class tell apart."""
    lines = [f"{label}\t{words[n % 5]} {words[n // 6]} {n}!\n" for n in range(30) for label, words in WORDS.items()]
    (tmp_path / "sms.tsv").write_text("".join(lines), "utf-8")
    return tmp_path / "sms.tsv"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pipeline_labels_as_we_do(cli, sms, tmp_path, layout):
    ok(cli(MODULE, "--data", sms, "--model", "transformer", *LAYOUTS[layout], *QUICK, "--out", "run"))
    done = ok(cli("-m export", "run", "--to", "hf", "out"))
    assert f"wrote out, a {layout}: pipeline('text-classification', 'out')" in done.out
    assert "its logits in transformers" in done.out
    classify = transformers.pipeline("text-classification", str(tmp_path / "out"))
    texts = ["claim your free prize", "see you", "<eos> cash" * 20]
    ours = ok(cli(MODULE, "--out", "run", "--predict", "-", stdin="\n".join(texts).encode())).out.splitlines()
    together = classify(texts, truncation=True, top_k=None, batch_size=3)  # padded to the longest
    for line, theirs in zip(map(json.loads, ours), together, strict=True):
        assert {each["label"]: pytest.approx(each["score"], abs=1e-5) for each in theirs} == line["probabilities"]
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "pipeline_tag: text-classification" in card and "| labels | ham, spam |" in card
    assert "| test accuracy | " in card and not (tmp_path / "out/generation_config.json").exists()


def test_a_text_may_have_several_labels_there_too(cli, tmp_path):
    rows = [
        (f"{'win cash ' * (n % 2)}{'see you ' * (n % 3 > 0)}{n}", ["spam"] * (n % 2) + ["ham"] * (n % 3 > 0))
        for n in range(60)
    ]
    (tmp_path / "sms.jsonl").write_text("\n".join(json.dumps({"text": t, "label": of}) for t, of in rows), "utf-8")
    ok(cli(MODULE, "--data", "sms.jsonl", "--model", "transformer", *QUICK, "--out", "run"))
    assert "its logits in transformers" in ok(cli("-m export", "run", "--to", "hf", "out")).out
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert theirs.config.problem_type == "multi_label_classification"
    thresholds = [each["threshold"] for each in summary()["test"]["classes"].values()]
    assert theirs.config.thresholds == thresholds and theirs.config.id2label == {0: "ham", 1: "spam"}
    texts = ["win cash", "see you 3", "win cash see you"]
    ours = ok(cli(MODULE, "--out", "run", "--predict", "-", stdin="\n".join(texts).encode())).out.splitlines()
    found = transformers.pipeline("text-classification", str(tmp_path / "out"))(texts, truncation=True, top_k=None)
    for line, scores in zip(map(json.loads, ours), found, strict=True):
        assert {each["label"]: pytest.approx(each["score"], abs=1e-5) for each in scores} == line["probabilities"]
    ids = torch.tensor([[1, 9, 8, 7]])
    out = theirs(ids, labels=torch.tensor([[0.0, 1.0]]))
    assert out.loss == F.binary_cross_entropy_with_logits(out.logits, torch.tensor([[0.0, 1.0]])), "it goes on there"
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "| test micro-F1 | " in card and "| thresholds | 0." in card and "A text may have several labels" in card


REFUSED = {
    "ngrams": (
        ("--ngrams", 2),
        "--ngrams 2 is no part of a classifier of transformers: one goes that was",
    ),
    "mean": (("--pooling", "mean"), "--pooling mean is no part"),
    "ahead": (("--look-ahead", 2), "--look-ahead 2 is no part"),
    "gru": (("--model", "gru"), "run is a gru: transformers has a class for Transformers alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_part_of_one_is_refused(cli, sms, case):
    flags, message = REFUSED[case]
    model = ("--n-embd", 8, "--n-hidden", 8) if case == "gru" else ("--model", "transformer", *QUICK[:6])
    few = ("--steps", 1, "--batch-size", 8, *(("--ngrams", 0) if case != "ngrams" else ()))
    ok(cli(MODULE, "--data", sms, *model, *few, *flags, "--out", "run"))
    refused(cli("-m export", "run", "--to", "hf", "out"), message)


def test_other_formats_have_no_classifiers(cli, sms):
    ok(cli(MODULE, "--data", sms, "--model", "transformer", *QUICK[:6], "--steps", 1, "--out", "run"))
    refused(cli("-m export", "run", "--to", "gguf", "out"), "run labels texts and writes none")
