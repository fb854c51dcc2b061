"""Instruction following through the command line: train, evaluate, resume, adapters, preferences, and the chat."""

import json

import pytest
import torch
from safetensors.torch import load_file

from data.rows import RowLoader
from tests.conftest import NAMES
from tests.helpers import TERM, at_call, left, metrics, ok, refused, summary, warnings_of

MODULE = "-m finetune.instruct"
TINY = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16)
QUICK = (*TINY, "--steps", 8, "--eval-interval", 4, "--batch-size", 8, "--warmup", 2)


def generations(path="run/generations.jsonl"):
    return [json.loads(line) for line in open(path)]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": f"Leave.\n{name}", "chosen": "bye", "rejected": "hi"}) for name in NAMES]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("template", ["chatml", "alpaca", "plain"])
def test_train_evaluate_and_ask(cli, greetings, template):
    done = ok(cli(MODULE, "--data", greetings, *QUICK, "--template", template, "--out", "run"))
    assert f"template {template}" in done.out and "exact match  examples" in done.out
    found = summary()
    assert found["test"]["examples"] == 10 and set(found["test"]["tasks"]) == {"greet", "leave"}
    assert found["left_out"] == {"train": 0, "val": 0, "test": 0} and found["steps"] == 8
    lines = generations()
    assert len(lines) == 10 and set(lines[0]) == {"task", "messages", "wanted", "answer", "exact"}
    assert lines[0]["messages"][0]["role"] == "user" and lines[0]["messages"][0]["content"].startswith("Greet.\n")
    assert sum(line["exact"] for line in lines) / 10 == found["test"]["exact_match"]
    assert "val_exact_match" in metrics("run")[-1]
    again = json.loads(ok(cli(MODULE, "--eval-only", "--out", "run", "--generations", "again.jsonl")).out)
    assert again["loss"] == pytest.approx(found["test"]["loss"], rel=1e-6) and generations("again.jsonl") == lines
    other = json.loads(ok(cli(MODULE, "--eval-only", "--out", "run", "--data", greetings)).out)
    assert other["examples"] == 2 * len(NAMES) and other["data"] == "greetings"
    assert ok(cli("sample.py", "run", "--chat", "--message", "Leave.")).out.endswith("\n")


def test_it_learns_and_then_answers(cli, taught):
    found = summary()
    assert found["test"]["tasks"]["leave"]["exact_match"] == 1.0
    assert ok(cli("sample.py", "run", "--chat", "--message", "Leave.\nemma")).out == "bye\n"
    open("question.txt", "w").write("Leave.\nemma\n")
    told = ok(cli("sample.py", "run", "--chat", "--message", "@question.txt", "--json")).out
    assert json.loads(told) == {"text": "bye", "end": "eos"}
    ask = ("sample.py", "run", "--chat", "--message", "Leave.\nemma", "--json")
    assert json.loads(ok(cli(*ask, "--max-new-tokens", 2)).out) == {"text": "by", "end": "length"}
    assert json.loads(ok(cli(*ask, "--stop", "ye")).out) == {"text": "b", "end": "stop"}
    open("stdin.txt", "w").write("")
    talk = ok(
        cli("sample.py", "run", "--chat", stdin="Leave.\nemma\n/nonsense\n/reset\nLeave.é\n/quit\nLeave.\n".encode())
    )
    lines = talk.out.splitlines()
    assert "[there is no /nonsense; there are: /system, " in lines[2] and lines[3:] == ["[starting over]"]
    assert "character 'é' (position 6) is not in this model's vocabulary" in talk.err
    kept = ok(cli("sample.py", "run", "--chat", "--unknown", "skip", stdin="Leave.é\nemma".encode())).out
    assert len(kept.splitlines()) == 2


def test_interrupted_and_resumed_equals_never_interrupted(cli, greetings, tmp_path):
    flags = ("--data", greetings, *TINY, "--steps", 20, "--eval-interval", 5, "--batch-size", 8, "--dropout", 0.1)
    ok(cli(MODULE, *flags, "--out", "whole"))
    with at_call(RowLoader, "deal", 8, TERM):
        stopped = cli(MODULE, *flags, "--out", "run")
    assert stopped.code == 143 and "python -m finetune.instruct --resume --out" in stopped.out
    ok(cli(MODULE, "--resume", "--out", tmp_path / "run"))
    assert left(tmp_path / "run") == left(tmp_path / "whole")
    assert generations("run/generations.jsonl") == generations("whole/generations.jsonl")


@pytest.mark.parametrize("model", ["gru", "cnn", "mlp", "lstm", "rnn", "bigram"])
def test_every_family_that_is_trained_can_answer(cli, greetings, model):
    size = {"bigram": [], "mlp": ["--order", 9]}.get(model, ["--n-layer", 1])
    ok(cli(MODULE, "--data", greetings, "--model", model, *size, *QUICK[-8:], "--out", "run"))
    ok(cli("sample.py", "run", "--chat", "--message", "Leave."))


def test_adapters_are_saved_alone_and_used_everywhere(cli, taught, greetings, pairs):
    flags = ("--data", greetings, "--init", "run", "--train", "lora", "--lora-rank", 2, "--lora-layers", "attn")
    ok(cli(MODULE, *flags, "--steps", 6, "--eval-interval", 3, "--batch-size", 8, "--out", "tuned"))
    kept = load_file("tuned/best/model.safetensors")
    assert kept and all("attn" in name and ".lora_" in name for name in kept)
    adapter, whole = (
        sum(t.numel() for t in load_file(f"{run}/best/model.safetensors").values()) for run in ("tuned", "run")
    )
    assert adapter < 0.1 * whole
    told = json.loads(ok(cli(MODULE, "--eval-only", "--out", "tuned")).out)
    assert told["loss"] == pytest.approx(summary("tuned")["test"]["loss"], rel=1e-5)
    assert ok(cli("sample.py", "tuned", "--chat", "--message", "Leave.\nemma")).out == "bye\n"
    ok(cli(MODULE, "--resume", "--out", "tuned", "--steps", 9))
    assert summary("tuned")["steps"] == 9
    ok(cli(MODULE, "--data", greetings, "--init", "tuned", "--steps", 2, "--eval-interval", 2, "--out", "third"))
    assert json.load(open("third/config.json"))["config"]["template"] == "chatml"
    preferred = ("--dpo", "--data", pairs, "--init", "tuned", "--train", "lora", "--steps", 4, "--eval-interval", 2)
    ok(cli(MODULE, *preferred, "--out", "fourth"))
    ok(cli("sample.py", "fourth", "--chat", "--message", "Leave.\nemma"))
    ok(cli(MODULE, "--eval-only", "--out", "fourth"))


def test_preferences(cli, taught, pairs):
    flags = ("--dpo", "--data", pairs, "--init", "run", "--lr", 1e-3, "--dpo-beta", 0.5)
    ok(cli(MODULE, *flags, "--steps", 20, "--eval-interval", 10, "--batch-size", 8, "--out", "liked"))
    lines = metrics("liked")
    assert lines[0]["val_loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert lines[0]["val_margin"] == pytest.approx(0, abs=1e-5) and lines[-1]["val_margin"] > 0
    found = summary("liked")["test"]
    assert found["accuracy"] > 0.5 and found["margin"] > 0 and found["loss"] < lines[0]["val_loss"]
    told = json.loads(ok(cli(MODULE, "--eval-only", "--out", "liked")).out)
    assert told["margin"] == pytest.approx(found["margin"], rel=1e-4) and told["accuracy"] == found["accuracy"]
    ok(cli(MODULE, *flags, "--steps", 20, "--eval-interval", 10, "--batch-size", 8, "--out", "short"))
    ok(cli(MODULE, "--resume", "--out", "short", "--steps", 30))
    resumed = metrics("short")
    assert resumed[:3] == [line | {"seconds": s["seconds"]} for line, s in zip(lines, resumed, strict=False)]
    assert ok(cli("sample.py", "liked", "--chat", "--message", "Leave.\nemma")).out == "bye\n"


def test_what_is_too_long_is_counted(cli, tmp_path):
    items = [{"prompt": name * (1 + (n % 9 == 0)), "completion": name} for n, name in enumerate(NAMES)]
    (tmp_path / "a.json").write_text(json.dumps(items))
    done = ok(cli(MODULE, "--data", "a.json", *QUICK, "--context", 20, "--out", "run"))
    told = [line for line in warnings_of(done) if "left out" in line]
    assert told and "train examples are longer than the context of 20: left out" in told[0]
    assert sum(summary()["left_out"].values()) == sum(3 + 3 * len(i["completion"]) > 20 for i in items[::9]) + sum(
        2 + 2 * len(i["completion"]) + 1 > 20 for n, i in enumerate(items) if n % 9
    )
    refused(
        cli(MODULE, "--data", "a.json", *QUICK, "--context", 5, "--out", "b"),
        "longer than the context of 5",
        "--context",
    )


def test_a_conversation_that_lost_its_oldest_turns_still_has_room_for_its_answer(cli, tmp_path):
    def turns(n):
        texts = [NAMES[n] * 2, "b" * 8, NAMES[n], "cc"]
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    (tmp_path / "a.json").write_text(json.dumps([{"messages": turns(n)} for n in range(len(NAMES))]))
    flags = ("--steps", 200, "--eval-interval", 100, "--batch-size", 16, "--dropout", 0, "--context", 24)
    done = ok(cli(MODULE, "--data", "a.json", *TINY, *flags, "--out", "run"))
    assert "their oldest turns went" in done.err and summary()["shortened"]["test"] > 0
    assert summary()["test"]["exact_match"] == 1.0
    lines = generations()
    assert {len(line["messages"]) for line in lines} == {1}


def test_defaults_follow_the_model_of_a_config_file_too(cli, greetings, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"model": "rnn"}))
    ok(cli(MODULE, "--data", greetings, "--config", "c.json", "--steps", 1, "--max-answer", 2, "--out", "run"))
    settings = json.load(open("run/config.json"))["config"]
    assert (settings["model"], settings["optimizer"], settings["activation"]) == ("rnn", "adamw", "tanh")


def test_evaluating_on_what_the_vocabulary_lacks_says_so(cli, taught, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "hi", "completion": "да"}] * 3))
    done = ok(cli(MODULE, "--eval-only", "--out", "run", "--data", "b.json"))
    assert "6 of 12 characters of the test texts are not in the vocabulary" in done.err
    assert json.loads(done.out)["exact_match"] == 0


def test_a_foreign_alphabet_is_refused(cli, taught, tmp_path):
    items = [{"prompt": f"Привет {name}", "completion": "да"} for name in NAMES]
    (tmp_path / "a.json").write_text(json.dumps(items))
    refused(
        cli(MODULE, "--data", "a.json", "--init", "run", "--out", "b"),
        "not in the vocabulary of run",
        "--tokenizer byte",
    )


REFUSED = {
    "template": (("--template", "chat"), "--template", "chatml"),
    "dpo of nothing": (("--dpo",), "--dpo needs --init, a run that answers already"),
    "dpo of strings": (("--dpo", "--init", "run"), "no run directory run"),
    "beta": (("--dpo-beta", 0.1), "--dpo-beta means nothing without --dpo"),
    "beta range": (("--dpo-beta", 0), "--dpo-beta is 0.0; it has to be above 0"),
    "lora flag": (("--lora-layers", "attn"), "--lora-layers means nothing without --train lora"),
    "lora of nothing": (("--train", "lora"), "--train lora leaves weights as they are: it needs --init"),
    "generations": (("--generations", "x"), "--generations means nothing without --eval-only"),
    "answer": (("--max-answer", 0), "--max-answer is 0; it has to be at least 1"),
    "counts": (("--model", "ngram"), "a ngram that counts cannot be fine-tuned"),
    "file": (("--data", "nowhere.json"), "nowhere.json"),
    "kind": (("--data", "some.txt"), "some.txt holds no conversations"),
    "seed": (("--split-seed", -1), "--split-seed is -1"),
    "strings' duplicates": (("--duplicates", "drop"), "--duplicates means nothing to the bundled strings"),
    "strings' encoding": (("--encoding", "latin-1"), "--encoding means nothing to the bundled strings"),
    "no generations": (("--generations", ""), "--generations"),
    "eval of nothing": (("--eval-only",), "--eval-only needs --out"),
    "foreign flag": (("--model", "gru", "--n-head", 2), "--n-head means nothing to --model gru"),
    "misspelt": (("--tempalte", "plain"), "--tempalte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_end_in_one_message(cli, case):
    flags, *words = REFUSED[case]
    refused(cli(MODULE, *flags), *words)


def test_runs_of_other_commands_are_told_apart(cli, taught, greetings, names):
    ok(cli("train.py", "--data", names, "--steps", 2, "--eval-interval", 2, *TINY, "--out", "plain"))
    refused(cli("sample.py", "plain", "--chat"), "plain never learned to answer", "finetune.instruct with --init")
    refused(cli(MODULE, "--resume", "--out", "plain"), "plain is not a run of python -m finetune", "--init plain")
    refused(cli(MODULE, "--eval-only", "--out", "plain"), "plain is not a run of python -m finetune.instruct")
    refused(cli("train.py", "--resume", "--out", "run"), "go on with it by python -m finetune.instruct")
    refused(cli("-m finetune.classify", "--resume", "--out", "run"), "run is not a run of python -m finetune.classify")
    (greetings.parent / "answers.txt").write_text("hi emma\nbye\n" * 20)
    ok(cli("train.py", "--data", "answers.txt", "--init", "run", "--steps", 2, "--eval-interval", 2, "--out", "more"))
    ok(cli("sample.py", "run", "--num", 2, "--prompt", "Leave.\nemma"))
    ok(cli("sample.py", "run", "--score", "Leave.\nemma"))
    missing = ("--eval-only", "--out", "run", "--generations")
    refused(cli(MODULE, *missing, "nowhere/x"), "cannot write --generations nowhere/x")
    refused(cli(MODULE, *missing, "."), "cannot write --generations .: name a file")


def test_examples_that_changed_are_not_resumed(cli, taught, greetings):
    greetings.write_text(greetings.read_text().replace("bye", "ciao"))
    refused(cli(MODULE, "--resume", "--out", "run", "--steps", 300), "have changed since the run")
    refused(cli(MODULE, "--eval-only", "--out", "run"), "have changed since the run", "--data")
