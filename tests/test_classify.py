"""`python -m finetune.classify` through its command line: runs, results, resuming, labelling, every refusal."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from data.errors import UserError
from data.rows import RowLoader
from data.tokenizers import CharTokenizer
from engine.config.settings import make
from finetune.classify import baselines, classifier, labeller
from finetune.classify.augment import AugmentedLoader, changed
from finetune.classify.examples import encode
from finetune.classify.options import ClassifyConfig
from tests.helpers import INT, TERM, at_call, summary
from tests.matrices import matrix

MODULE = "-m finetune.classify"
QUICK = ("--n-embd", 8, "--n-hidden", 8, "--steps", 30, "--eval-interval", 15, "--batch-size", 8)
WORDS = {"spam": ["win", "free", "cash", "prize", "claim"], "ham": ["see", "you", "home", "soon", "love"]}


@pytest.fixture(autouse=True)
def small_bag(monkeypatch):
    """The bag of n-grams has few rows: most of a short run would go into keeping 65,536 of them."""
    monkeypatch.setattr(classifier, "BUCKETS", 256)


@pytest.fixture
def sms(tmp_path):
    """A table of 120 messages that five words a class tell apart."""
    lines = []
    for n in range(60):
        for label, words in WORDS.items():
            lines.append(f"{label}\t{words[n % 5]} {words[(n * 7 + n // 5) % 5]} {n}!\n")
    path = tmp_path / "sms.tsv"
    path.write_text("".join(lines), "utf-8")
    return path


def test_a_classifier_from_nothing_learns_reports_and_labels(cli, sms, drawn):
    done = cli(MODULE, "--data", sms, *QUICK, "--steps", 60, "--lr", 0.02, "--out", "run")
    assert done.code == 0, done.err
    found = summary()
    assert found["labels"] == ["ham", "spam"] and found["test"]["accuracy"] > 0.9
    assert found["baselines"]["majority"]["accuracy"] == 0.5 and "character n-grams" in found["baselines"]
    assert sum(map(sum, found["test"]["confusion"])) == 12
    assert "precision  recall" in done.out and "macro-F1" in done.out and "actual / predicted" in done.out
    assert imread("run/confusion.png").ndim == imread("run/loss.png").ndim == 3
    metrics = [json.loads(line) for line in open("run/metrics.jsonl")]
    assert metrics[-1]["val_accuracy"] > metrics[0]["val_accuracy"] - 1 and "val_macro_f1" in metrics[-1]

    labelled = json.loads(cli(MODULE, "--out", "run", "--predict", "claim your free prize").out)
    assert labelled["label"] == "spam" and sum(labelled["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert list(labelled["probabilities"]) == ["spam", "ham"]
    many = cli(MODULE, "--out", "run", "--predict", "-", stdin=b"see you soon\nwin cash\r\n")
    assert [json.loads(line)["label"] for line in many.out.splitlines()] == ["ham", "spam"]
    open("some.txt", "w").write("love you\nclaim cash\n")
    at = json.loads(cli(MODULE, "--out", "run", "--predict", "@@some.txt").out)
    assert at["text"] == "@some.txt"
    many = cli(MODULE, "--out", "run", "--predict", "@some.txt")
    assert [json.loads(line)["label"] for line in many.out.splitlines()] == ["ham", "spam"]
    again = json.loads(cli(MODULE, "--out", "run", "--eval-only").out)
    assert again["accuracy"] == found["test"]["accuracy"] and again["confusion"] == found["test"]["confusion"]
    assert json.loads(cli(MODULE, "--out", "run", "--eval-only", "--data", sms).out)["examples"] == 120
    shutil.rmtree("run/best")
    blank = cli(MODULE, "--out", "run", "--predict", " ")
    assert blank.code == 2 and "--predict is empty" in blank.err, "said before the weights are loaded"

    refused = cli("sample.py", "run")
    assert refused.code == 2 and "labels texts and writes none" in refused.err


@pytest.mark.parametrize("stop, code", [(INT, 130), (TERM, -signal.SIGTERM)])
def test_a_signal_during_the_baselines_leaves_a_whole_run(cli, sms, stop, code):
    with at_call(baselines, "ngram_baseline", 1, stop):
        stopped = cli(MODULE, "--data", sms, *QUICK, "--out", "run")
    assert stopped.code == code and "Traceback" not in stopped.err
    found = summary()
    assert found["baselines"] is None and found["test"]["accuracy"] > 0 and "this model " in stopped.out
    assert Path("run/confusion.png").exists() and Path("run/loss.png").exists()
    again = cli(MODULE, "--resume", "--out", "run")
    assert again.code == 0 and summary()["baselines"]["character n-grams"]["accuracy"] > 0.9
    assert summary()["test"] == found["test"]


def test_the_baseline_is_announced_and_may_be_left_out(cli, sms):
    done = cli(MODULE, "--data", sms, *QUICK, "--out", "run")
    assert done.out.index("this model ") < done.out.index("measuring the n-gram baseline, at most 10 s")
    with at_call(baselines, "ngram_baseline", 1, INT):
        done = cli(MODULE, "--data", sms, *QUICK, "--no-baseline", "--out", "other")
    assert done.code == 0 and "measuring" not in done.out and "left out: --no-baseline" in done.out
    assert summary("other")["baselines"]["character n-grams"] == {"left_out": "--no-baseline"}
    with at_call(baselines, "ngram_baseline", 1, INT):
        assert cli(MODULE, "--resume", "--out", "other", "--no-baseline", "--steps", 31).code == 0
    refused = cli(MODULE, "--out", "run", "--eval-only", "--no-baseline")
    assert refused.code == 2 and "--baseline means nothing here" in refused.err


def test_a_baseline_that_takes_too_long_is_left_out_and_said(cli, sms, monkeypatch):
    monkeypatch.setattr(baselines, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(baselines, "TIMES_TRAINING", 0)
    done = cli(MODULE, "--data", sms, *QUICK, "--out", "run")
    assert done.code == 0 and "character n-grams  left out: it took longer than 0 s" in done.out
    assert summary()["baselines"]["character n-grams"] == {"left_out": "it took longer than 0 s"}
    assert summary()["baselines"]["majority"]["accuracy"] == 0.5


def test_a_baseline_that_is_too_large_keeps_its_most_frequent_ngrams(cli, sms, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_BYTES", 4 * baselines.COPIES * 2 * 30)  # 30 rows of two classes
    done = cli(MODULE, "--data", sms, *QUICK, "--out", "run")
    found = summary()["baselines"]["character n-grams"]
    assert done.code == 0 and found["ngrams"] == 30 < found["of_ngrams"] and found["accuracy"] > 0.7
    assert f"(the 30 most frequent of {found['of_ngrams']:,} n-grams)" in done.out


@pytest.mark.parametrize("train", matrix(["head", "last:1", "lora", "all"], ["head", "lora"]))
@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_a_run_of_any_family_becomes_a_classifier(cli, sms, tmp_path, model, train):
    text = tmp_path / "text.txt"
    text.write_text(sms.read_text().replace("\t", " ") * 3)
    sizes = ("--n-embd", 8, "--n-layer", 2, "--context", 24, "--batch-size", 4)
    parent = cli("train.py", "--model", model, "--data", text, *sizes, "--steps", 2, "--out", "parent")
    assert parent.code == 0, parent.err
    quick = ("--steps", 4, "--eval-interval", 2, "--batch-size", 8, "--out", "run")
    ahead = ("--look-ahead", 4) if model == "transformer" and train == "lora" else ()
    done = cli(MODULE, "--data", sms, "--init", "parent", "--train", train, *ahead, *quick)
    if train == "lora" and model == "gru":
        assert done.code == 2 and "has no linear layers to adapt" in done.err
        return
    assert done.code == 0, done.err
    before = cli(MODULE, "--out", "run", "--predict", "see you").out
    assert json.loads(before)["label"] in WORDS
    again = json.loads(cli(MODULE, "--out", "run", "--eval-only").out)
    assert again["confusion"] == summary()["test"]["confusion"]
    resumed = cli(MODULE, "--resume", "--out", "run", "--steps", 6)
    assert resumed.code == 0 and summary()["steps"] == 6, resumed.err


def test_a_long_text_is_cut_to_the_context_and_counted(cli, sms):
    done = cli(MODULE, "--data", sms, *QUICK, "--context", 9, "--out", "run")
    assert done.code == 0 and "warning: 96 of 96 train texts are longer than 9 tokens: cut" in done.err


def test_interrupted_and_resumed_equals_never_interrupted(cli, sms, tmp_path):
    flags = ("--data", sms, *QUICK, "--eval-interval", 10)
    assert cli(MODULE, *flags, "--out", "whole").code == 0
    with at_call(RowLoader, "deal", 12, TERM):
        stopped = cli(MODULE, *flags, "--out", "run")
    assert stopped.code == 143 and "python -m finetune.classify --resume --out" in stopped.out
    assert cli(MODULE, "--resume", "--out", tmp_path / "run").code == 0
    left, right = summary("whole"), summary(str(tmp_path / "run"))
    assert left["test"] == right["test"] and left["val_loss"] == right["val_loss"]
    assert left["train_loss"] == right["train_loss"]


def test_augmented_texts_differ_by_epoch_and_come_again(cli, sms, tmp_path):
    flags = ("--data", sms, *QUICK, "--eval-interval", 10, "--augment", 0.3, "--no-baseline")
    assert cli(MODULE, *flags, "--out", "whole").code == 0
    with at_call(RowLoader, "deal", 17, TERM):  # in the second epoch
        assert cli(MODULE, *flags, "--out", "run").code == 143
    assert cli(MODULE, "--resume", "--out", tmp_path / "run").code == 0
    left, right = summary("whole"), summary(str(tmp_path / "run"))
    assert left["val_loss"] == right["val_loss"] and left["train_loss"] == right["train_loss"]
    assert cli(MODULE, *flags, "--augment", 0, "--out", "plain").code == 0
    assert summary("plain")["train_loss"] != left["train_loss"]
    changing = cli(MODULE, "--resume", "--out", "whole", "--augment", 0.1)
    assert changing.code == 2 and "--augment" in changing.err


def test_an_augmented_batch_follows_from_seed_epoch_and_number():
    texts, tokenizer = ["win a prize today", "see you at home"], CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    rows = encode(texts, tokenizer, 30, np.array([0, 1]))[0]

    def read(text, item):
        return encode([text], tokenizer, 30, np.array([item]))[0][0]

    loader = AugmentedLoader(rows, texts, 0.3, read, 2, 5, tokenizer.special.pad, 30)
    first, second = loader.deal(), loader.deal()
    assert (first.epoch, second.epoch) == (0, 1)
    one, again, other = loader.batch(first), loader.batch(first), loader.batch(second)
    assert (one.tokens == again.tokens).all() and one.tokens.tolist() != other.tokens.tolist()
    assert sorted(one.targets.max(1).tolist()) == [0, 1] and loader.longest == 30
    half = loader.batch(first.share(1, 2))  # a process with a share of the batch
    width = half.tokens.shape[1]
    assert half.tokens[0].tolist() == one.tokens[1, :width].tolist()
    alphabet = "abc"
    rng = np.random.default_rng(1)
    lengths = {len(changed("abcabcabca", 0.3, alphabet, rng)) for _ in range(50)}
    assert min(lengths) < 10 < max(lengths) and changed("abc", 0.0, alphabet, rng) == "abc"
    assert all(changed("a", 1.0, alphabet, rng) for _ in range(20))


REFUSED = {
    "augment": (("--augment", 1), "--augment is 1"),
    "unknown train": (("--train", "half"), "--train is 'half'; it may be all, head, last:N or lora"),
    "head of nothing": (("--train", "head"), "needs --init"),
    "lora flag": (("--lora-rank", 2), "--lora-rank means nothing without --train lora"),
    "class weights": (("--class-weights", "1.5"), "may be none, balanced or a number from 0 to 1"),
    "seed": (("--split-seed", -1), "--split-seed is -1"),
    "ngrams": (("--ngrams", 17), "--ngrams is 17"),
    "look-ahead of another family": (("--look-ahead", 3), "--look-ahead means nothing to --model gru"),
    "look-ahead and language": (
        ("--model", "transformer", "--look-ahead", 3, "--lm-weight", 1),
        "--look-ahead shows each token what --lm-weight",
    ),
    "language weight": (("--lm-weight", -1), "--lm-weight is -1"),
    "ngram family": (("--model", "ngram"), "counts once and trains nothing"),
    "empty predict": (("--predict", ""), "no run directory run"),
    "column": (("--text-column", "txt"), "has no column 'txt'"),
    "predict without a run": (("--predict", "x"), "--predict needs --out"),
    "foreign flag": (("--n-head", 2), "--n-head means nothing to --model gru"),
    "no such run": (("--init", "nowhere"), "no run directory nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_ends_in_one_message(cli, sms, case):
    flags, message = REFUSED[case]
    given = () if case == "predict without a run" else ("--data", sms, *QUICK[4:], "--out", "run")
    refused = cli(MODULE, *given, *flags)
    assert refused.code == 2 and message in refused.err and "Traceback" not in refused.err


@pytest.mark.parametrize("train", ["all", "head"])
def test_a_run_that_starts_from_another_resumes_exactly_with_its_own_dropout(cli, sms, tmp_path, train):
    text = tmp_path / "text.txt"
    text.write_text(sms.read_text().replace("\t", " ") * 3)
    sizes = ("--n-embd", 8, "--n-layer", 2, "--context", 24, "--batch-size", 4)
    assert cli("train.py", "--data", text, *sizes, "--steps", 2, "--out", "parent").code == 0
    flags = ("--data", sms, "--init", "parent", "--train", train, "--dropout", 0.4, "--schedule", "constant")
    flags += ("--batch-size", 8, "--eval-interval", 2, "--warmup", 0)
    assert cli(MODULE, *flags, "--steps", 6, "--out", "whole").code == 0
    assert cli(MODULE, *flags, "--steps", 2, "--out", "run").code == 0
    assert cli(MODULE, "--resume", "--out", "run", "--steps", 6).code == 0
    assert summary("run")["train_loss"] == summary("whole")["train_loss"]
    assert summary("run")["test"] == summary("whole")["test"]
    for name in ("last", "best"):
        shutil.rmtree(tmp_path / "run" / name)
    refused = cli(MODULE, "--resume", "--out", "run")
    assert refused.code == 2 and "stopped before its first save: start it once more, with --overwrite" in refused.err


def test_a_parent_without_a_limit_reads_as_much_as_is_asked_for(cli, sms, names):
    quick = ("--n-embd", 8, "--steps", 2, "--batch-size", 4)
    parent = ("--model", "gru", "--data", sms, "--context", 7, *quick)
    assert cli("train.py", *parent, "--kind", "lines", "--out", "parent").code == 0
    for given, expected in (((), 16), (("--context", 9), 9)):
        done = cli(MODULE, "--data", sms, "--init", "parent", *quick[2:], *given, "--out", "run", "--overwrite")
        assert done.code == 0 and json.load(open("run/config.json"))["config"]["context"] == expected, done.err


def test_what_only_a_head_cannot_use_is_refused():
    with pytest.raises(UserError, match="--lm-weight means nothing to --train head"):
        make(ClassifyConfig, {"train": "head", "init": "a run", "lm_weight": 0.5}).check({"lm_weight"})
    with pytest.raises(UserError, match="--carry-state, which means nothing here"):
        make(ClassifyConfig, {"model": "gru", "carry_state": True}).check(set())


def test_eval_only_refuses_examples_that_are_no_longer_the_runs(cli, sms):
    assert cli(MODULE, "--data", sms, *QUICK, "--steps", 2, "--out", "run").code == 0
    refused = cli(MODULE, "--out", "run", "--eval-only", "--text-column", "text")
    assert refused.code == 2 and "--text-column goes with --data here" in refused.err
    sms.write_text(sms.read_text() + "ham\tone more\n")
    refused = cli(MODULE, "--out", "run", "--eval-only")
    assert refused.code == 2 and "have changed since the run began: name some with --data" in refused.err


def test_a_new_alphabet_from_nothing_is_a_warning_and_other_commands_refuse_a_classifier(cli, tmp_path):
    rows = [f"{label}\t{chr(0x4E00 + 7 * n + k)}{chr(0x5E00 + n)}\n" for n in range(40) for k, label in enumerate("ab")]
    (tmp_path / "x.tsv").write_text("".join(rows), "utf-8")
    done = cli(MODULE, "--data", "x.tsv", *QUICK, "--steps", 2, "--out", "run")
    assert done.code == 0 and "--tokenizer byte knows all" in done.err and "only 8 test examples" in done.err
    for flags in (("--resume", "--out", "run"), ("--eval-only", "--out", "run"), ("--init", "run")):
        refused = cli("train.py", *flags)
        assert refused.code == 2 and "run labels texts: it is for python -m finetune.classify" in refused.err
    labelled = cli(MODULE, "--out", "run", "--predict", "-", stdin="漢é\n\nx\n".encode())
    assert [json.loads(line)["text"] for line in labelled.out.splitlines()] == ["漢é", "x"] and labelled.out.isascii()
    refused = cli(MODULE, "--out", "run", "--predict", "-", stdin=b"\xff\xfe\n")
    assert refused.code == 2 and "standard input is not utf-8: line 1" in refused.err


def test_a_config_file_may_name_the_run_to_start_from(cli, sms, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(sms.read_text().replace("\t", " ") * 3)
    sizes = ("--n-embd", 8, "--n-layer", 1, "--context", 24, "--batch-size", 4)
    assert cli("train.py", "--data", text, *sizes, "--steps", 2, "--out", "parent").code == 0
    (tmp_path / "c.json").write_text('{"init": "parent", "batch_size": 8, "steps": 2}')
    assert cli(MODULE, "--config", "c.json", "--data", sms, "--out", "run").code == 0
    stored = json.load(open("run/config.json"))["config"]
    assert (stored["model"], stored["init"], stored["lr"]) == ("transformer", "parent", 5e-4)
    assert cli(MODULE, "--out", "run", "--predict", "see you").code == 0
    assert cli(MODULE, "--init=scratch", "--data", sms, *QUICK, "--steps", 2, "--out", "new").code == 0
    assert json.load(open("new/config.json"))["config"]["lr"] == 3e-3


def test_texts_of_another_alphabet_are_refused_with_a_way_out(cli, sms, names):
    quick = ("--n-embd", 8, "--steps", 2, "--batch-size", 4)
    assert cli("train.py", "--model", "gru", "--data", names, "--kind", "lines", *quick, "--out", "parent").code == 0
    refused = cli(MODULE, "--data", sms, "--init", "parent", "--out", "run")
    assert refused.code == 2 and "are not in the vocabulary of parent" in refused.err
    assert "--tokenizer byte, or from scratch" in refused.err


def test_labels_that_training_never_saw_are_refused(cli, sms, tmp_path):
    assert cli(MODULE, "--data", sms, *QUICK, "--steps", 2, "--out", "run").code == 0
    other = tmp_path / "other.tsv"
    other.write_text("ham\tsee you\neggs\tsee me\n")
    refused = cli(MODULE, "--out", "run", "--eval-only", "--data", other)
    assert refused.code == 2 and "other.tsv line 2 has the label 'eggs', which training never saw" in refused.err
    refused = cli(MODULE, "--out", "run", "--predict", "x", "--lr", 0.1)
    assert refused.code == 2 and "--lr means nothing here" in refused.err
    sms.write_text(sms.read_text().replace("home", "house"))
    refused = cli(MODULE, "--resume", "--out", "run")
    assert refused.code == 2 and "have changed since the run began" in refused.err
    assert cli(MODULE, "--out", "elsewhere", "--predict", "x").code == 2


def test_a_run_that_writes_is_no_classifier(cli, names):
    quick = ("--n-embd", 8, "--steps", 2, "--batch-size", 4)
    assert cli("train.py", "--model", "gru", "--data", names, "--kind", "lines", *quick, "--out", "run").code == 0
    refused = cli(MODULE, "--out", "run", "--predict", "x")
    assert refused.code == 2 and "is not a run of python -m finetune.classify" in refused.err


def test_what_a_shell_passes_on_that_is_no_text_is_predicted_as_u_fffd(cli, sms):
    assert cli(MODULE, "--data", sms, *QUICK, "--steps", 2, "--out", "run").code == 0
    labelled = cli(MODULE, "--out", "run", "--predict", "win \udcff")
    assert labelled.code == 0 and json.loads(labelled.out)["text"] == "win \ufffd"
    labelled = cli(MODULE, "--out", "run", "--predict", "-", stdin=b"win\rsee\r\n\rok\n")
    assert [json.loads(line)["text"] for line in labelled.out.splitlines()] == ["win", "see", "ok"]


def test_texts_in_another_unicode_form_than_the_vocabulary_s_are_told_so(monkeypatch, capsys):
    monkeypatch.setattr(labeller, "probabilities", lambda *_: None)
    config = make(ClassifyConfig, {"data": "x", "context": 16})
    judge = labeller.Labeller(None, CharTokenizer("caf\u00e9"), config, ["a", "b"], None)
    judge(["cafe\u0301", "caf\u00e9"])
    assert "so write the text in that form" in capsys.readouterr().err
    judge(["cafx"])
    assert "are not in the vocabulary: expect little" in capsys.readouterr().err
