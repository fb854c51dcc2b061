"""`python -m bench.gpu`: all of it at toy sizes, and what is left when a job dies, hangs or runs out of time."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from bench.gpu import auto, jobs, page, pictures, plan, shapes, training
from bench.gpu import rows as table
from bench.gpu.jobs import Job
from bench.gpu.plan import Stage
from bench.gpu.rows import Row
from kernels import bench_tasks
from kernels.attention import reference
from tests.conftest import ROOT
from tests.helpers import ok, refused

# A job of the tests: `--rows FILE [--skip N] WORDS`, where each word is one measurement and what happens at it.
FAKE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.gpu.rows import Row, append
words, skip = sys.argv[3:], 0
if words[0] == "--skip":
    skip, words = int(words[1]), words[2:]
for number, word in enumerate(words):
    if number < skip:
        continue
    print(f"at: {number} shape {word}" if "numbered" in words else f"at: shape {word}", flush=True)
    if word in ("SIGSEGV", "SIGABRT"):
        os.kill(os.getpid(), getattr(signal, word))
    if word == "exit":
        sys.exit("no such kernel")
    if word == "hang":
        child = subprocess.Popen(["sleep", "1000"])
        Path(sys.argv[2]).with_name("child").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(1000)
    part = word if word in ("kernels", "training", "decoding", "processes") else "tests"
    append(Path(sys.argv[2]), Row(part, "attention shape", word, value=0.5))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake("a", "SIGSEGV")` is a job that measures "a" and is then killed; `case` is what it is called."""
    (tmp_path / "fakejob.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(*words: str, case: str = "D16 T17 float16 causal", limit: float = 100, part: str = "tests") -> Job:
        return Job(part, "attention shape", case, "fakejob", words, limit)

    return make


@pytest.fixture
def planned(monkeypatch):
    """`planned(tests=[...])`: the command has these jobs and no ceilings to measure."""

    def use(at_once: int = 1, **jobs_of: list[Job]) -> None:
        monkeypatch.setattr(plan, "stages", lambda part, *_: ([Stage(jobs_of.get(part, []), at_once)], []))
        monkeypatch.setattr(
            jobs, "Job", lambda *args: Job("machine", "ceilings", "", "bench.gpu.__init__")
        )  # a module that does nothing

    return use


def measured(folder: str | Path = "out") -> list[Row]:
    return [row for row in table.read(Path(folder, "gpu.csv")) if row.part != "machine"]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.exhaustive
def test_all_of_it_runs_at_toy_sizes(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "gpu.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {row["outcome"] for row in found} <= {"ok", "left out", "skipped"}
    by_part = {part: [row for row in found if row["part"] == part] for part in ("machine", *plan.MINUTES)}
    assert {"copy", "product"} <= {row["what"] for row in by_part["machine"]}
    assert {row["case"] for row in by_part["tests"]} >= {str(each) for each in plan.shapes(smoke=True)}
    assert sum(row["what"].startswith("tests/") for row in by_part["tests"]) >= 5
    assert {row["what"].partition(",")[0] for row in by_part["kernels"]} == {
        "attention", "layer_norm", "rms_norm", "add + layer_norm", "cross_entropy", "linear_cross_entropy",
        "linear_cross_entropy a row",
    }  # fmt: skip
    steps = [row for row in by_part["training"] if row["what"].endswith(", a step")]
    assert {row["what"] for row in steps} == {f"{model}, a step" for model in plan.MODELS}
    assert len({row["case"] for row in steps}) == 8 and all(float(row["ms"]) > 0 for row in steps)
    runs = [row for row in by_part["training"] if row["what"] == "baby GPT, to the loss"]
    assert [row["case"] for row in runs] == ["with counts", "without counts"]
    in_memory = {(row["what"], row["case"]) for row in by_part["memory"]}
    ways = ("kept", "--activation-checkpointing")
    assert in_memory >= {(model, way) for model in plan.MODELS[1:] for way in ways}
    assert (plan.MODELS[-1], "--grad-accum auto") in in_memory and len(in_memory) == 2 * len(plan.MODELS[1:]) + 2
    assert {row["who"] for row in by_part["decoding"]} >= {"one by one", "captured"}
    together = {row["case"]: row["note"] for row in by_part["processes"]}
    assert list(together) == ["1 process", "2 processes", "2 processes, --shard"]
    assert together["2 processes"] == "validation losses at most 0.0e+00 from the first row's"
    text = (tmp_path / "gpu.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles[0].startswith("## What failed") and [title[3] for title in titles[1:9]] == [*"abcdefgh"]
    assert "Nothing was measured" not in text and "Toy sizes" in text and "`auto` should take" in text
    assert all(imread(tmp_path / name).ndim == 3 for name in pictures.PICTURES)
    assert sum((tmp_path / name).stat().st_size for name in pictures.PICTURES) < 16e6


@pytest.mark.parametrize(
    ("end", "said"),
    [("SIGSEGV", "killed by SIGSEGV"), ("SIGABRT", "killed by SIGABRT"), ("exit", "exit code 1: no such kernel")],
)
def test_a_shape_whose_process_dies_is_named_and_the_rest_goes_on(cli, fake, planned, end, said):
    planned(tests=[fake("a", end), fake("b", case="D32 T17 float16 causal")])
    done = cli("-m bench.gpu", "--smoke", "--part", "tests", "--out", "out")
    assert done.code == 1, done.err
    assert [(row.case, row.outcome) for row in measured()] == [
        ("a", "ok"), ("D16 T17 float16 causal", "died"), ("b", "ok"),
    ]  # fmt: skip
    line = f"died: tests: attention shape, D16 T17 float16 causal: {said}, at shape {end}"
    assert line in done.out and f"- {line}" in Path("out/gpu.md").read_text()
    assert "| D16 T17 | causal | **died** |" in Path("out/gpu.md").read_text()


def test_what_comes_after_a_fault_is_measured_by_a_new_process(cli, fake, planned):
    planned(kernels=[fake("numbered", "a", "SIGSEGV", "b", "SIGABRT", "c", part="kernels")])
    done = ok(cli("-m bench.gpu", "--smoke", "--part", "kernels", "--out", "out"))
    assert [row.case for row in measured() if row.outcome == "ok"] == ["numbered", "a", "b", "c"]
    assert "at 2 shape SIGSEGV" in done.out and "at 4 shape SIGABRT" in done.out


def test_a_job_that_hangs_is_stopped_at_its_own_limit(cli, fake, planned):
    planned(kernels=[fake("a", "hang", limit=2, part="kernels"), fake("b", part="kernels")])
    ok(cli("-m bench.gpu", "--smoke", "--part", "kernels", "--out", "out"))
    assert [row.outcome for row in measured()] == ["ok", "stopped", "ok"]
    assert "its limit, at shape hang" in measured()[1].note


def test_a_part_over_its_time_is_stopped_and_what_it_had_is_kept(cli, fake, planned):
    planned(tests=[fake("a", "hang"), fake("late", case="D32 T17 float16 causal")], decoding=[fake("b")])
    done = ok(
        cli("-m bench.gpu", "--smoke", "--part", "tests", "--part", "decoding", "--minutes", 0.08, "--out", "out")
    )
    assert [(row.case, row.outcome) for row in measured()] == [
        ("a", "ok"), ("D16 T17 float16 causal", "stopped"), ("D32 T17 float16 causal", "left out"), ("b", "ok"),
    ]  # fmt: skip
    text = Path("out/gpu.md").read_text()
    for outcome, D, before in (("stopped", 16, ""), ("left out", 32, " before it")):
        line = f"{outcome}: tests: attention shape, D{D} T17 float16 causal: the time of the part was over{before}"
        assert f"- {line}" in text and line in done.out
    assert not [pid for pid in Path("out/child").read_text().split() if is_running(int(pid))]


def test_a_command_that_is_killed_leaves_its_rows_and_no_job(fake, tmp_path):
    patched = (
        "import runpy, sys\nfrom bench.gpu import plan\nfrom bench.gpu.jobs import Job\n"
        "jobs = [Job('tests', 'attention shape', 'x', 'fakejob', ('a', 'hang'))]\n"
        "plan.stages = lambda *_: ([plan.Stage(jobs)], [])\n"
        "sys.argv = ['gpu', '--smoke', '--part', 'tests', '--out', sys.argv[1]]\n"
        "runpy.run_module('bench.gpu', run_name='__main__')\n"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    running = subprocess.Popen([sys.executable, "-c", patched, str(tmp_path / "out")], env=env)
    child = tmp_path / "out/child"
    while not (child.exists() and child.read_text().endswith(tuple("0123456789"))):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    job, _ = map(int, child.read_text().split())
    for _ in range(200):
        if not is_running(job):
            break
        time.sleep(0.05)
    os.kill(int(child.read_text().split()[1]), signal.SIGKILL)  # the job's own child, which a GPU's job has not
    assert not is_running(job)
    assert [row.case for row in measured(tmp_path / "out")] == ["a"]
    assert "## What failed" in (tmp_path / "out/gpu.md").read_text()


def test_parts_are_chosen_and_one_call_goes_on_with_anothers_folder(cli, fake, planned):
    planned(**{part: [fake(part, part=part)] for part in plan.MINUTES})
    first = ok(cli("-m bench.gpu", "--smoke", "--part", "decoding", "--part", "kernels", "--out", "out"))
    assert [row.case for row in measured()] == ["kernels", "decoding"]
    assert "not run: tests" in first.out and "not run: training" in first.out and "not run: kernels" not in first.out
    ok(cli("-m bench.gpu", "--smoke", "--part", "training", "--part", "kernels", "--out", "out"))
    assert [row.case for row in measured()] == ["decoding", "kernels", "training"]
    found = table.read(Path("out/gpu.csv"))
    other = [row._replace(note="another") if row.case == "card" else row for row in found]
    table.begin(Path("out/gpu.csv"), other)
    refused(cli("-m bench.gpu", "--smoke", "--part", "tests", "--out", "out"), "measured with another card (another;")
    ok(cli("-m bench.gpu", "--smoke", "--out", "out"))  # all anew: nothing old is kept


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--out"),
        (("--out", "o", "--part", "tennis"), "argument --part: invalid choice: 'tennis'"),
        (("--out", "o", "--minutes", "0"), "argument --minutes: '0' is no number above 0"),
        (("--out", "o", "--minutes", "soon"), "argument --minutes: 'soon' is no number above 0"),
        (("--out", "o", "--nanogpt", "."), "argument --nanogpt: . holds no model.py"),
        (("--out", "o", "--smokes"), "unrecognized arguments: --smokes"),
        (("--out", "names.txt", "--smoke"), "--out names.txt is no folder"),
    ],
    ids=str,
)
def test_a_wrong_flag_ends_in_one_message(cli, names, flags, words):
    refused(cli("-m bench.gpu", *flags), words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(cli):
    refused(cli("-m bench.gpu", "--out", "o"), "torch sees no GPU", "or add --smoke")
    assert not Path("o").exists()


def test_a_mistake_in_showing_costs_no_measurement(cli, fake, planned, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of a picture")

    planned(kernels=[fake("kernels")], training=[fake("training")])
    monkeypatch.setattr(pictures, "draw", broken)
    done = ok(cli("-m bench.gpu", "--smoke", "--part", "kernels", "--part", "training", "--out", "out"))
    assert [row.case for row in measured()] == ["kernels", "training"] and "of a picture" in done.err


def test_bad_news_come_first(tmp_path):
    found = [
        Row("kernels", "attention, forward", "B1", ms=1, value=100.0, unit="TFLOP/s", target=270.0),
        Row("kernels", "attention, forward", "B1", "SDPA flash", ms=1, value=90.0, unit="TFLOP/s", target=270.0),
        Row("training", "baby GPT, a run", "with counts", outcome="left out", note=plan.NO_SHAKESPEARE),
        Row("tests", "attention shape", "D16 T17 float16 causal", outcome="stopped", note="after 9 s"),
        Row("tests", "tests/test_norms.py", "test_x", outcome="failed", note="call: off by 3 | < 2"),
        Row("tests", "attention shape", "D32 T17 float16 causal", outcome="ok", value=0.3),
    ]
    table.begin(tmp_path / "gpu.csv", found)
    page.write(tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    lines = [line[2:] for line in text.splitlines() if line.startswith("- ")]
    assert [line.partition(":")[0] for line in lines] == ["failed", "stopped", "missed", "left out", *3 * ["not run"]]
    assert lines[0] == "failed: tests: tests/test_norms.py, test_x: call: off by 3 \\| &lt; 2"
    assert "goal 270" in lines[2] and "SDPA" not in lines[2]
    assert text.index("off by 3") < text.index("## a. Tests") < text.index("| D32 T17 | causal | 0.3 |")


def test_rows_come_back_as_they_were_written_and_a_torn_one_is_left_out(tmp_path):
    written = [Row("tests", 'a, "b"', "é", ms=1.5, share=0.25, note="two\nlines"), Row("kernels", "c", "d", value=1e-7)]
    table.begin(tmp_path / "x.csv", written[:1])
    table.append(tmp_path / "x.csv", *written[1:])
    with (tmp_path / "x.csv").open("a") as file:
        file.write("tests,a,b,ours,1.\ntests,a,b,ours,1,2,TFLOP/s,0.5,3\ntests,a")
    assert table.read(tmp_path / "x.csv") == [written[0]._replace(note="two lines"), written[1]]


def test_a_wrong_kernel_fails_its_shape(monkeypatch):
    """Judged on torch's own arithmetic, with and without an error put into it."""
    shape = plan.Shape(16, 9, "float32", "causal")

    def use(spoil) -> Row:
        def attention(q, k, v, *, backend, **options):
            return spoil(reference.attention(q, k, v, **options)[0])

        monkeypatch.setattr(shapes.kernels, "attention", attention)
        return shapes.measure(shape, 2)

    right = use(lambda out: out)
    assert right.outcome == "ok" and 0 < right.value <= 0.6
    wrong = use(lambda out: out + 1e-4)
    assert wrong.outcome == "failed" and wrong.value > 1 and "worst: output" in wrong.note
    assert use(lambda out: out * torch.nan).value == float("inf")
    calls = iter(range(9))
    unsteady = use(lambda out: out * (1 + 1e-7 * next(calls)))
    assert unsteady.outcome == "failed" and "of 2 repeats gave other bits" in unsteady.note


def test_every_test_that_ends_is_a_row(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.fixture\ndef broken(): raise OSError('no disk')\n"
        "def test_right(): pass\ndef test_wrong(): assert 1 == 2, 'so it is'\ndef test_early(broken): pass\n"
        "@pytest.mark.skip\ndef test_not_here(): pass\n"
    )
    (tmp_path / "test_torn.py").write_text("def test_(:\n")
    job = Job("tests", "t", "", "bench.gpu.pytests", tuple(str(tmp_path / f"test_{name}.py") for name in ("it",)))
    place = jobs.Place(tmp_path / "x.csv", tmp_path, dict(os.environ))
    jobs.run([job], place, time.monotonic() + 100)
    found = {row.case: (row.outcome, row.note) for row in table.read(place.rows)}
    assert found["test_right"] == ("ok", "") and found["test_not_here"][0] == "skipped" and len(found) == 4
    assert found["test_wrong"][0] == "failed" and "so it is" in found["test_wrong"][1]
    assert found["test_early"][0] == "failed" and found["test_early"][1].startswith("setup: OSError: no disk")
    torn = job._replace(args=(str(tmp_path / "test_torn.py"),))
    jobs.run([torn], place, time.monotonic() + 100)
    assert [row.outcome for row in table.read(place.rows)][4:] == ["failed"]


def test_auto_takes_what_was_measured_to_be_faster():
    def kernel(operation: str, who: str, *ms: float) -> list[Row]:
        ways = ("forward", "backward") if len(ms) == 2 else ("both",)
        return [Row("kernels", f"{operation}, {way}", "S", who, each) for way, each in zip(ways, ms, strict=True)]

    def step(attention: str, norm: str, ms: float) -> Row:
        case = str(training.Setting("off", attention, norm))
        return Row("training", "default, a step", case, attention, ms, 1.0, "tokens/s")

    found = [
        *kernel("attention", "ours", 1, 3),
        *kernel("attention", "SDPA flash", 2, 3),
        *kernel("attention", "SDPA", 2, 2.2),
        *kernel("attention", "torch eager", 0.1, 0.1),  # the definition, not what torch would take
        *kernel("rms_norm", "ours", 1, 1),
        *kernel("rms_norm", "torch eager", 2, 2),
        *kernel("rms_norm", "torch.compile", 1, 1.01),
        *kernel("linear_cross_entropy", "ours", 5),
        *kernel("linear_cross_entropy", "torch eager", 4),
        *kernel("layer_norm", "ours", 1, 1),  # beside nothing
        step("torch", "torch", 10),
        step("triton", "torch", 9),
        step("torch", "triton", 9.9),
        step("triton", "triton", 1),
    ]
    takes = {each.operation: each.takes for each in auto.choices(found)}
    assert takes == {
        "attention": "triton", "rms_norm": "triton in eager, torch when compiled", "linear_cross_entropy": "torch",
        "--attention auto": "triton", "--norm-kernel auto": "torch",
    }  # fmt: skip
    (why,) = (each.why for each in auto.choices(found) if each.operation == "attention")
    assert why == "4 ms against 4.2 ms (SDPA), 5 ms (SDPA flash)"


def test_the_flops_of_a_step_are_those_that_are_said(tmp_path):
    trainer, note = training.trainer_of("GPT-2 124M", training.Setting("off", "torch", "torch"), True, tmp_path)
    C, V, T, layers = 16, training.TOY_VOCABULARY, 16, 1
    weights = V * C + layers * 12 * C * C  # of matrices; the head's is the embedding table
    flops = training.flops_a_step(trainer, training.Times(1.0, 2 * T, 2))
    assert flops == 2 * T * (6 * weights + 12 * layers * C * T) and note == "random tokens"


def test_a_model_that_did_not_compile_is_no_measurement_of_a_compiled_one(monkeypatch):
    def compile(*_, **__):
        def fail(*_, **__):
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    row = training.measure("GPT-2 124M", training.Setting("on", "torch", "torch"), True, None)
    assert row.outcome == "failed" and "no compiler" in row.note


def test_every_setting_is_compiled_anew(monkeypatch):
    """More settings than the compiler has room for by itself (recompile_limit), on a compiler that only counts."""
    graphs: list[int] = []

    def compiler(graph, _):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend=compiler))
    counts = []
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(2 + 2):
            graphs.clear()
            row = training.measure("GPT-2 124M", training.Setting("on", "torch", "torch"), True, None)
            counts.append(len(graphs))
    assert row.outcome == "ok" and counts[0] > 0 and len(set(counts)) == 1, counts


def test_every_size_of_a_kernel_is_compiled_for_itself(monkeypatch):
    sizes: list[int] = []

    def compiler(graph, inputs):
        sizes.extend(int(x.shape[0]) for x in inputs if isinstance(x, torch.Tensor))
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend=compiler, **how))

    def double(x):
        return 2 * x

    expected = list(range(2, torch._dynamo.config.recompile_limit + 5))
    for n in expected:
        bench_tasks.with_compiled({"torch eager": double}, False)["torch.compile"](torch.ones(n))
    assert sizes == expected


@pytest.mark.parametrize("smoke", [True, False])
def test_shakespeare_that_is_not_here_is_said_and_no_failure(monkeypatch, tmp_path, smoke):
    found, late = plan.stages("training", smoke)
    names = [job.what for stage in found for job in stage.jobs]
    assert [row.outcome for row in late] == ([] if smoke else ["left out"] * 2)
    assert ("baby GPT, a run" in names) == smoke
    (tmp_path / "shakespeare.txt").write_text("To be")
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path))
    found, late = plan.stages("training", smoke)
    assert not late and [job.what for job in found[-1].jobs] == ["baby GPT, a run"] * 2


def test_the_suspects_come_first_each_in_a_process_of_its_own():
    first, whole = plan.stages("tests", False)[0]
    sizes = [int(job.args[0]) for job in first.jobs]
    small = [size in (16, 32) for size in sizes]
    assert small == sorted(small, reverse=True) and {16, 32, 64, 128, 40} == set(sizes)
    ways = [job.args[4] for job in first.jobs]
    assert ways.index("padded") > ways.index("plain") and set(ways) == set(plan.WAYS)
    assert all(("CHARLM_SMALL_HEADS", job.args[4]) in job.env for job in first.jobs)
    assert len({job.args for job in first.jobs}) == len(first.jobs) > 80
    assert {job.args[2] for job in first.jobs} == {"float32", "float16", "bfloat16"}
    assert [job.what for job in whole.jobs] == list(plan.FILES) and all((ROOT / file).exists() for file in plan.FILES)


def test_small_heads_take_the_first_way_that_is_right():
    def shape(case: str, outcome: str) -> Row:
        return Row("tests", "attention shape", case, outcome=outcome)

    rows = [shape("D16 T17 bfloat16 causal plain", "ok"), shape("D32 T17 bfloat16 causal plain", "died")]
    rows += [shape("D16 T17 bfloat16 causal padded", "ok"), shape("D16 T17 bfloat16 causal two-warps", "ok")]
    (choice,) = auto.choices(rows)
    assert choice.takes == "padded" and "plain: 1 of 2 shapes are right" in choice.why
    (choice,) = auto.choices([*rows[:1], shape("D64 T129 bfloat16 causal plain", "died")])
    assert choice.takes == "plain"
    (choice,) = auto.choices(rows[1:2])
    assert choice.takes == "torch: no way is right"


def test_the_ways_of_small_heads_are_those_of_the_kernels():
    from kernels.attention.tiles import SMALL_HEADS

    assert plan.WAYS == SMALL_HEADS
