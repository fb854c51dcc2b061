"""finetune.instruct --grpo: a model learns from rewards for its own answers, and what a reward can do wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.batches import IGNORE
from data.tokenizers import CharTokenizer
from engine.config.flags import parse
from engine.registry import build_model
from finetune.instruct.options import InstructConfig
from finetune.instruct.reward.policy import Rewarded, Settings, advantages, prompts_of
from finetune.instruct.reward.rewards import alternating, exact, places
from finetune.instruct.reward.scorer import Answer
from finetune.instruct.templates import Template
from tests.conftest import ROOT
from tests.helpers import KILL, at_call, left, metrics, ok, quick, refused, summary

MODULE = "-m finetune.instruct"
OWN = """
import itertools, os, time

calls = itertools.count()

def share(answer, prompt, wanted):
    return answer.count("a") / max(len(answer), 4)

def later(what):  # fine for the two times that it is asked about 256 answers before the first step
    return lambda answer, prompt, wanted: what(answer) if next(calls) > 520 else 0.5

raises = later(lambda answer: {}[answer])
infinite = later(lambda answer: float("nan"))
words = later(lambda answer: "good")
large = later(lambda answer: 1e300)
leaves = later(lambda answer: os._exit(3))
hangs = later(lambda answer: time.sleep(1000))
"""
MENDED = "def {}(answer, prompt, wanted):\n    return 0.5\n"
GRPO = ("--init", "start", "--grpo", "--data", "none", "--samples", 8, "--batch-size", 2, "--max-answer", 12)
SHORT = ("--steps", 6, "--eval-interval", 3, "--out", "run")


@pytest.fixture(autouse=True)
def start(cli, names, tmp_path):
    """A run `start` that writes names, and rewards of one's own."""
    ok(cli("train.py", *quick("gru", data="names.txt", steps=20, n_embd=8, n_hidden=16, lr=1e-2, out="start")))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def f(:\n")


def test_the_reward_grows_and_the_run_writes_what_it_learned(cli):
    flags = ("--reward", "own:share", "--kl", 0.01, "--lr", 1e-2, "--steps", 60, "--eval-interval", 20, "--out", "run")
    done = ok(cli(MODULE, *GRPO, *flags))
    lines, found = metrics("run"), summary("run")
    assert (
        lines[0]["val_kl"] == 0 and lines[-1]["val_kl"] > 0 and lines[-1]["val_reward"] > lines[0]["val_reward"] + 0.1
    )
    assert lines[-1]["val_loss"] == pytest.approx(0.01 * lines[-1]["val_kl"] - lines[-1]["val_reward"], abs=1e-5)
    assert (
        found["before"]["kl"] == 0
        and found["test"]["reward"] > found["before"]["reward"] + 0.1
        and 0 < found["test"]["distinct"] <= 1
    )
    answers = [json.loads(line) for line in Path("run/generations.jsonl").read_text().splitlines()]
    assert all(
        each["reward"] == pytest.approx(each["answer"].count("a") / max(len(each["answer"]), 4)) for each in answers
    )
    assert Path("run/reward.png").exists() and f"{found['before']['reward']:.3f} before" in done.out
    drawn = ok(cli("sample.py", "run", "--num", 20)).out
    assert drawn.count("a") > 0.3 * len(drawn)
    refused(cli(MODULE, "--eval-only", "--out", "run"), "run was trained without questions")


def test_a_run_goes_on_as_if_it_had_not_stopped(cli):
    flags = (*GRPO, "--reward", "own:share", *SHORT)
    ok(cli(MODULE, *flags))
    straight = left(Path("run"))
    with at_call(Rewarded, "draw", 5, KILL):
        cli(MODULE, *flags, "--overwrite")
    refused(cli(MODULE, "--resume", "--out", "run"), "own:share, a function outside", "--reward own:share")
    ok(cli(MODULE, "--resume", "--out", "run", "--reward", "own:share"))
    assert left(Path("run")) == straight
    with at_call(Rewarded, "draw", 5, KILL):
        cli(MODULE, *flags, "--overwrite")
    ok(cli(MODULE, *flags, "--go-on"))  # this line names the reward, as the one that began the run
    assert left(Path("run")) == straight


def test_the_code_that_a_strangers_config_names_is_not_called(cli):
    ok(cli(MODULE, *GRPO, "--reward", "own:share", *SHORT))
    theirs = ("--config", "run/config.json", "--init", "start", "--data", "none", "--out", "mine")
    refused(cli(MODULE, *theirs), "--config run/config.json asks for own:share", "--reward own:share")
    ok(cli(MODULE, *theirs, "--reward", "own:share"))


def test_what_fails_before_the_first_save_says_that_nothing_is_saved(cli, tmp_path):
    (tmp_path / "own.py").write_text("def raises(answer, prompt, wanted):\n    return {}[answer]\n")
    refused(cli(MODULE, *GRPO, "--reward", "own:raises", *SHORT), "Nothing was saved yet", "--overwrite")
    (tmp_path / "own.py").write_text(MENDED.format("raises"))
    ok(cli(MODULE, *GRPO, "--reward", "own:raises", *SHORT, "--overwrite"))


@pytest.mark.parametrize(
    "function, words",
    {
        "raises": ("raises KeyError", "own.py, line 12", "for the answer"),
        "infinite": ("is nan, which is not finite",),
        "words": ("is 'good', which is no number",),
        "large": ("is 1e+300, where 1e+09 is the most",),
        "leaves": ("has ended its process (exit code 3)",),
        "hangs": ("has not ended after 1 s", "--reward-seconds"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_reward_that_fails_says_so_and_the_run_goes_on_once_it_is_mended(cli, tmp_path, function, words):
    result = cli(MODULE, *GRPO, "--reward", f"own:{function}", "--reward-seconds", 1, *SHORT)
    how = f"What was saved before is whole; go on with: python {MODULE} --resume --out run --reward own:{function}"
    refused(result, f"the reward own:{function} {words[0]}", *words[1:], how)
    (tmp_path / "own.py").write_text(MENDED.format(function))
    ok(cli(MODULE, "--resume", "--out", "run", "--reward", f"own:{function}", "--reward-seconds", 2))
    assert summary("run")["steps"] == 6


@pytest.mark.parametrize(
    "flags, words",
    {
        "no module": (
            ("--reward", "nowhere:f"),
            "the reward nowhere:f is not there: there is no module nowhere in this folder",
        ),
        "no function": (("--reward", "own:nothing"), "own.py has no function nothing"),
        "no name": (("--reward", "best"), "--reward best: alternating, exact, places, or MODULE:FUNCTION"),
        "a path": (("--reward", "/tmp/own:f"), "or MODULE:FUNCTION"),
        "a file": (("--reward", "own.py:share"), "without .py, as in my_rewards:short"),
        "a typing mistake": (("--reward", "broken:f"), "SyntaxError: invalid syntax (broken.py, line 1)"),
        "questions": (("--reward", "exact"), "--data none has none"),
        "one sample": (("--reward", "own:share", "--samples", 1), "needs --samples 2 or more"),
        "none": ((), "--grpo needs --reward"),
        "dpo": (("--reward", "own:share", "--dpo"), "choose one"),
        "smoothing": (("--reward", "own:share", "--label-smoothing", 0.1), "--label-smoothing means nothing to --grpo"),
        "template": (("--reward", "own:share", "--template", "plain"), "--template means nothing without questions"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_together_is_refused(cli, flags, words):
    refused(cli(MODULE, *GRPO, *words[0], *SHORT), words[1])
    assert not Path("run").exists()


def test_flags_of_rewards_need_grpo(cli):
    refused(cli(MODULE, "--kl", 0.2), "--kl means nothing without --grpo")
    refused(cli(MODULE, "--data", "none"), "--data none needs --grpo")


def test_questions_with_answers_that_can_be_checked(cli, tmp_path):
    lines = [{"prompt": f"say {'ab'[n % 2]}{n % 7}", "completion": "ab"[n % 2]} for n in range(60)]
    (tmp_path / "say.jsonl").write_text("\n".join(map(json.dumps, lines)))
    size = ("--model", "gru", "--n-embd", 12, "--n-hidden", 24, "--data", "say.jsonl", "--steps", 60, "--lr", 1e-2)
    ok(cli(MODULE, *size, "--eval-interval", 60, "--out", "half"))
    flags = ("--init", "half", "--grpo", "--data", "say.jsonl", "--reward", "exact", "--lr", 1e-2, "--steps", 20)
    ok(cli(MODULE, *flags, "--eval-interval", 10, "--max-answer", 4, "--out", "run"))
    lines = metrics("run")
    assert lines[-1]["val_reward"] > lines[0]["val_reward"]
    answers = [json.loads(line) for line in Path("run/generations.jsonl").read_text().splitlines()]
    assert all(each["reward"] == float(each["answer"] == each["wanted"]) for each in answers)
    ok(cli(MODULE, *flags[:-4], "--lr", 1e-9, "--steps", 1, "--out", "same"))  # --eval-only compares answers as ever
    same, half = (json.loads(ok(cli(MODULE, "--eval-only", "--out", run)).out) for run in ("same", "half"))
    assert same["examples"] == half["examples"] and same["loss"] == pytest.approx(half["loss"], rel=1e-4)
    ok(cli("sample.py", "run", "--chat", "--message", "say a0"))


class Fixed:
    """A scorer that knows no process: the share of a's."""

    def scores(self, answers):
        return [answer.text.count("a") / 4 for answer in answers]


def rewarded(kl: float, advantage: str = "grpo") -> Rewarded:
    torch.manual_seed(1)
    tokenizer = CharTokenizer("abcd")
    config, _ = parse(["--model", "gru", "--n-embd", "6", "--n-hidden", "10"], InstructConfig)
    model = build_model(config, tokenizer.vocab_size, tokenizer.special).double()
    prompts = [tuple(Template("plain", tokenizer).prompt([]))]
    policy = Rewarded(model, Settings(64, 6, None, advantage, kl), Fixed(), tokenizer, {p: ("", "") for p in prompts})
    with torch.no_grad():  # away from the reference
        for p in policy.model.parameters():
            p += 0.1 * torch.randn_like(p)
    return policy


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_gradient_is_that_of_the_objective_on_the_answers_drawn(kl):
    policy = rewarded(kl).train()
    row = Template("plain", policy.tokenizer).question([])
    tokens, targets = (torch.from_numpy(part)[None] for part in (row.tokens, row.targets))
    assert prompts_of(tokens, targets) == [row.tokens.tolist()]
    torch.manual_seed(5)
    policy(tokens, targets).nll_sum.backward()
    found = [p.grad.clone() for p in policy.model.parameters()]
    policy.zero_grad()
    torch.manual_seed(5)
    drawn = policy.draw(policy.model, prompts_of(tokens, targets), 64, int(torch.randint(2**62, ())))
    reward = torch.tensor(policy.scorer.scores(drawn.answers))
    worth = (reward - reward.mean()) / (reward.std(correction=0) + 1e-4)
    is_drawn = drawn.targets != IGNORE

    def log_p(model):
        logits = model(drawn.tokens).logits.log_softmax(-1)
        return logits.gather(-1, drawn.targets.clamp(min=0)[..., None])[..., 0] * is_drawn

    now, before = log_p(policy.model), log_p(policy.reference).detach()
    ratio = (now - now.detach()).exp()  # of likelihoods, as the papers have it
    distance = (before - now).exp() - (before - now) - 1
    (-(ratio * worth[:, None].double() * is_drawn - kl * distance).sum() / 64).backward()
    for a, b in zip(found, policy.model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


def test_answers_and_their_rows_say_the_same():
    policy = rewarded(0.0)
    prompt = Template("plain", policy.tokenizer).prompt([])
    drawn = policy.draw(policy.model, [prompt], 20, 3)
    eos = policy.tokenizer.special.eos
    for tokens, targets, answer in zip(drawn.tokens, drawn.targets, drawn.answers, strict=True):
        said = targets[targets != IGNORE].tolist()
        assert policy.tokenizer.decode([id_ for id_ in said if id_ != eos]) == answer.text
        assert tokens[: len(said)].tolist() == (prompt + said)[:-1] and said.count(eos) == (
            len(said) < 6 or said[-1] == eos
        )


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    assert torch.equal(advantages(rewards, "none"), rewards)
    torch.testing.assert_close(advantages(rewards, "baseline")[0], torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3]))
    scaled = advantages(rewards, "grpo")
    torch.testing.assert_close(scaled[0], torch.tensor([1.0, -1.0, -1.0, 1.0]), atol=1e-3, rtol=0)
    assert not scaled[1].any()


def test_bundled_rewards():
    assert all(alternating(word, "", "") == 1 for word in ("banana", "kamila"))
    assert not any(alternating(word, "", "") for word in ("banane", "ban1na", "bananas", "", "anaana", "bbaaba"))
    assert exact(" ab\n", "", "ab") == 1 and exact("abc", "", "ab") == 0
    assert places("abcd", "", "abxd") == 0.75 and places("", "", "") == 0 and places("ab", "", "abcd") == 0.5
    assert Answer("a", "b", "c")._fields == ("text", "prompt", "wanted")


def is_running(pid: int) -> bool:
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(told.strip()) and "Z" not in told


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_reward_that_hangs_ends_with_a_training_that_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "def slow(*a):\n"
        "    open('at_work', 'w').write(str(os.getpid()))\n"
        "    os.rename('at_work', 'pid')\n"
        "    time.sleep(1000)\n"
    )
    (tmp_path / "main.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from finetune.instruct.reward.scorer import Answer, Scorer\n"
        "if __name__ == '__main__':\n    Scorer('slow:slow', 1000).scores([Answer('a', '', '')])\n"
    )
    training = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path)
    wait_for(lambda: (tmp_path / "pid").exists())
    reward = int((tmp_path / "pid").read_text())
    training.kill()
    training.wait()
    wait_for(lambda: not is_running(reward))
