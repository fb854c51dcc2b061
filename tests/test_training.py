"""Training from the command line: what stops it, and what it writes."""

from pathlib import Path

import pytest
from matplotlib.image import imread

from engine.config.flags import parse
from tests.conftest import TINY
from tests.helpers import LINES, STREAM, evaluated, facts, left, metrics, ok, quick, refused, summary, trained

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run
SUMMARY = {
    "model", "params", "steps", "tokens", "seconds", "train_loss", "val_loss", "val_bits_per_char", "best_step",
    "tokens_per_second", "peak_memory_mb",
}  # fmt: skip


def test_no_flag_at_all_is_a_transformer_on_the_bundled_names():
    config, given = parse([])
    assert (config.model, config.text.data, given) == ("transformer", "names", set())
    assert parse(["--no-resume", "--no-eval-only", "--out", "nowhere"])[0].optim == config.optim


@pytest.mark.parametrize(
    "flags",
    [{"optimizer": "sgd", "lr": 1e38}, {"optimizer": "muon", "muon_lr": 1e38}, {"lr": 1e30, "weight_decay": 1e20}],
    ids=str,
)
def test_a_loss_that_is_not_finite_stops_with_advice_and_keeps_the_last_good_weights(cli, tmp_path, flags):
    stopped = cli("train.py", *quick("mlp", **LINES | {"grad_clip": 0} | flags, steps=40, eval_interval=4))
    refused(stopped, "the training loss is not finite at step", "learning rate", "--lr", "--grad-clip 1", "run/last")
    assert not Path("run/summary.json").exists()
    ok(cli("sample.py", "run", "--num", 2, "--checkpoint", "last"))
    assert evaluated(cli, "--checkpoint", "last")["val_loss"] == metrics(tmp_path / "run")[-1]["val_loss"]


def test_patience_counts_evaluations_without_a_better_one(cli, tmp_path):
    flags = {"optimizer": "sgd", "lr": 30, "grad_clip": 0, "steps": 500, "eval_interval": 1, "warmup": 0}
    ok(cli("train.py", *quick("bigram", **LINES | flags, patience=3)))
    losses = [line["val_loss"] for line in metrics(tmp_path / "run")]
    best = losses.index(min(losses))
    assert len(losses) == best + 4 < 500
    assert summary()["best_step"] == best and summary()["steps"] == best + 3


@pytest.mark.parametrize("model", ["lstm", "cnn"])
def test_best_and_last_are_what_they_say(cli, tmp_path, model):
    (tmp_path / "train.txt").write_text("abc" * 99)
    (tmp_path / "val.txt").write_text("cba" * 99)  # the model learns the letters, then an order that is wrong here
    flags = {"data": "train.txt", "val_data": "val.txt", "context": 8, "lr": 0.05, "steps": 8, "eval_interval": 1}
    ok(cli("train.py", *quick(model, **flags, schedule="constant", warmup=0)))
    lines = metrics(tmp_path / "run")
    best = min(lines, key=lambda line: line["val_loss"])
    assert best["step"] not in (0, 8)
    assert facts(tmp_path / "run", "best")["step"] == best["step"] and facts(tmp_path / "run")["step"] == 8
    assert evaluated(cli)["val_loss"] == best["val_loss"] == summary()["val_loss"]
    assert evaluated(cli, "--checkpoint", "last")["val_loss"] == lines[-1]["val_loss"]


@pytest.mark.parametrize("model", [*TINY, "ngram", "bigram --counts"])
@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_a_run_ends_with_its_summary_and_evaluates_to_the_same(cli, tmp_path, model, kind):
    if model in TINY:
        run = trained(cli, model, **kind)
    else:
        flags = [f"--{name}={value}" for name, value in kind.items() if name != "context"]
        ok(cli("train.py", "--model", *model.split(), *flags, "--out", "run"))
        run = tmp_path / "run"
    found = summary()
    assert found.keys() >= SUMMARY and found["model"] == model.split()[0]
    assert min(found[name] for name in ("params", "steps", "tokens", "val_loss", "peak_memory_mb")) > 0
    assert found["val_loss"] == min(line["val_loss"] for line in metrics(run))
    again = evaluated(cli)
    assert again.keys() == found.keys()
    assert {k: v for k, v in again.items() if k != "peak_memory_mb"} == {
        k: v for k, v in found.items() if k != "peak_memory_mb"
    }
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "samples.txt", "loss.png", "best", "last"
    }  # fmt: skip


def test_the_losses_are_drawn_under_whatever_name_the_run_has(cli, drawn):
    ok(cli("train.py", *quick("bigram", **LINES, out="é$^$")))
    picture = imread("é$^$/loss.png")
    assert picture.shape == (504, 840, 4)
    shown = {tuple(pixel) for pixel in (picture.reshape(-1, 4)[:, :3] * 255).round().astype(int)}
    assert {(0x9A, 0x9A, 0x9A), (0x0B, 0x6E, 0x99)} <= shown, "the colours of the two curves"


def test_the_summary_counts_what_was_trained_on(cli, tmp_path):
    run = trained(cli, **STREAM, grad_accum=2)
    assert summary()["tokens"] == 6 * 2 * 4 * 12 == metrics(run)[-1]["tokens"]
    assert summary()["steps"] == 6


def test_the_training_loss_is_the_mean_over_the_steps_since_the_evaluation_before(cli, tmp_path):
    flags = STREAM | {"model": "lstm", "lr": 0.05}  # all steps have as many targets
    ok(cli("train.py", *quick(**flags, eval_interval=1, out="each")))
    ok(cli("train.py", *quick(**flags, eval_interval=3)))
    start, *each = [line["train_loss"] for line in metrics(tmp_path / "each")]
    assert start is None and each[0] > each[5] + 0.01
    expected = [sum(each[:3]) / 3, sum(each[3:]) / 3]
    assert [line["train_loss"] for line in metrics(tmp_path / "run")][1:] == pytest.approx(expected, rel=1e-6)
    assert summary()["train_loss"] == pytest.approx(expected[1], rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(cli, tmp_path):
    ok(cli("train.py", *quick("lstm", **LINES, dropout=0.2, out="a", seed=7)))
    ok(cli("train.py", *quick("lstm", **LINES, dropout=0.2, out="b", seed=7)))
    ok(cli("train.py", *quick("lstm", **LINES, dropout=0.2, out="c", seed=8)))
    assert left(tmp_path / "a") == left(tmp_path / "b")
    assert left(tmp_path / "a")["last/model.safetensors"] != left(tmp_path / "c")["last/model.safetensors"]
    assert Path("a/samples.txt").read_text() == Path("b/samples.txt").read_text()


def test_the_saved_configuration_trains_the_same_run_again(cli, tmp_path):
    flags = {"optimizer": "muon", "dropout": 0.1, "norm": "rms", "seed": 3, "schedule": "wsd", "positions": "rope"}
    ok(cli("train.py", *quick("transformer", **STREAM, **flags), "--no-bias", "--no-tie-head"))
    ok(cli("train.py", "--config", "run/config.json", "--out", "again"))
    assert left(tmp_path / "again") == left(tmp_path / "run")
    ok(cli("train.py", "--config=run/config.json", "--out", "longer", "--steps", 7))
    assert metrics(tmp_path / "longer")[-1]["step"] == 7


def test_runs_without_a_name_are_numbered(cli, tmp_path):
    for _ in range(2):
        flags = quick("bigram", data="my text.txt", context=8, steps=1)
        (tmp_path / "my text.txt").write_text("the cat sat " * 20)
        ok(cli("train.py", *flags[: flags.index("--out")], *flags[flags.index("--out") + 2 :]))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["bigram-my-text-1", "bigram-my-text-2"]
