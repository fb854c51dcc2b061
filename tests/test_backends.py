"""`--attention` and `--norm-kernel` through the real command line: the same model, other kernels."""

import json
from pathlib import Path

import pytest

from engine.run import report
from tests.kernel_helpers import DEVICE
from tests.matrices import matrix

interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counts launches of the interpreter")
TRITON = ("--attention", "triton", "--norm-kernel", "triton")
NARROW = ("--n-embd", 16, "--n-head", 2, "--n-layer", 1)


@pytest.fixture
def launches(tmp_path, monkeypatch):
    """A file to which every launch of an interpreted kernel, here or in a forked command, adds the kernel's name."""
    from triton.runtime.interpreter import GridExecutor

    path, call = tmp_path / "launches", GridExecutor.__call__
    path.touch()

    def counted(self, *args, **kwargs):
        with path.open("a") as file:
            print(self.fn.__name__, file=file)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    return path


@pytest.fixture
def no_samples(monkeypatch):
    """Runs end without their samples, which take most of the time here."""
    monkeypatch.setattr(report, "samples", lambda *run: ("", {}))


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows for name in ("train_loss", "val_loss") if row.get(name) is not None]


OTHER_OPTIONS = ("--norm", "rms", "--positions", "alibi", "--window", 4, "--n-kv-head", 1)


@interpreted
@pytest.mark.parametrize(
    "flags",
    matrix([(), OTHER_OPTIONS], [OTHER_OPTIONS]),
    ids=["GPT-2", "the other options"],
)
def test_training_on_triton_has_the_losses_of_torch(cli, names, launches, no_samples, tmp_path, flags):
    common = ("--data", names, "--kind", "lines", *NARROW, *flags, "--steps", 6, "--batch-size", 2,
              "--eval-interval", 3, "--eval-tokens", 50)  # fmt: skip
    found = []
    for backend, chosen in (("torch", ("--attention", "torch", "--norm-kernel", "torch")), ("triton", TRITON)):
        before = launches.read_text()
        done = cli("train.py", *common, *chosen, "--out", backend)
        assert done.code == 0, done.err
        ran = set(launches.read_text()[len(before) :].split())
        wanted = {"forward_kernel", "dq_kernel", "dkv_kernel", "backward_kernel"} if backend == "triton" else set()
        assert ran == wanted
        found.append(losses(tmp_path / backend))
    assert len(found[0]) == 5 and found[0] == pytest.approx(found[1], abs=1e-4)


@interpreted
def test_sampling_and_resuming_choose_their_own_kernels(cli, names, launches, no_samples):
    common = ("--data", names, "--kind", "lines", *NARROW, "--batch-size", 2)
    common += ("--eval-interval", 3, "--eval-tokens", 50)
    assert cli("train.py", *common, "--steps", 3, "--out", "run").code == 0
    drawing = ("sample.py", "run", "--seed", 1, "--num", 2, "--max-new-tokens", 8)
    plain = cli(*drawing)
    assert not launches.read_text()
    on_triton = cli(*drawing, *TRITON)
    assert on_triton.code == 0 and on_triton.out == plain.out
    assert set(launches.read_text().split()) == {"forward_kernel"}
    score = cli("sample.py", "run", "--score", "anna", *TRITON)
    assert score.code == 0 and score.out == cli("sample.py", "run", "--score", "anna").out
    resumed = cli("train.py", "--resume", "--out", "run", "--steps", 4, *TRITON)
    assert resumed.code == 0 and "dkv_kernel" in launches.read_text()
    evaluated = cli("train.py", "--eval-only", "--out", "run", "--attention", "torch")
    assert evaluated.code == 0 and json.loads(evaluated.out)["val_loss"] > 0


WITHOUT = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("flag", ["--attention", "--norm-kernel"])
def test_what_cannot_be_honoured_stops_with_the_reason(cli, names, asked_anew, flag):
    done = cli(
        "train.py",
        *NARROW,
        "--steps",
        2,
        "--data",
        names,
        "--kind",
        "lines",
        "--device",
        "cpu",
        flag,
        "triton",
        env=WITHOUT,
    )
    assert done.code == 2 and not Path("runs").exists()
    assert f"{flag} triton: the Triton kernels cannot run here: they need a GPU, not cpu" in done.err
    assert f"; use {flag} torch" in done.err
    assert cli("train.py", *NARROW, "--steps", 2, "--data", names, "--kind", "lines", "--out", "run").code == 0
    asked_anew()
    done = cli("sample.py", "run", "--device", "cpu", flag, "triton", env=WITHOUT)
    assert done.code == 2 and "cannot run here" in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "gru", "--attention", "triton"), "--attention means nothing to --model gru"),
        (("--model", "bigram", "--norm-kernel", "torch"), "--norm-kernel means nothing to --model bigram"),
        (("--norm", "none", "--norm-kernel", "triton"), "layer and rms norm, not --norm none"),
        (("--n-embd", 258, "--n-head", 2, "--attention", "triton"), "heads of at most 128"),
        (("--attention", "flash"), "flash"),
    ],
)
def test_a_choice_without_a_use_is_refused(cli, names, flags, message):
    done = cli("train.py", "--data", names, "--kind", "lines", *flags)
    assert done.code == 2 and message in done.err.replace("\n", " ")
