"""The commands of bench/ that need no peer: a comparison of families, sizes, turns."""

import multiprocessing
import re
import subprocess

import pytest
import torch
from matplotlib.image import imread

from bench import classify, compare, muon, processes, size, speedrun
from engine.config.flags import parse
from engine.registry import build_model
from tests.conftest import TINY
from tests.helpers import ok, refused
from tests.matrices import matrix


def numbers(path) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()[2:]]


@pytest.fixture
def forks(cli, monkeypatch):
    """The runs that a command starts are forked from it, too."""

    def run(command: list[str], **how) -> subprocess.CompletedProcess:
        ended = cli(*command[1:])
        return subprocess.CompletedProcess(command, ended.code, ended.out, ended.err)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.exhaustive
def test_a_comparison_has_a_line_and_a_curve_for_each_family(cli, forks, names, tmp_path, drawn):
    done = ok(cli("-m bench.compare", "--data", names, "--seconds", 0.2, "--models", "bigram", "ngram", "--out", "c"))
    rows = numbers(tmp_path / "c/table.md")
    assert [row[0] for row in rows] == ["bigram", "ngram"] and {len(row) for row in rows} == {10}
    for row in rows:
        assert 0.5 < float(row[6]) < 4 and float(row[7]) == pytest.approx(float(row[6]) / 0.6931, abs=0.01)
        assert int(row[8].replace(",", "")) > 0
    assert rows[1][2] == "1" and int(rows[0][2].replace(",", "")) >= 12
    assert imread(tmp_path / "c/loss.png").ndim == 3 and "| bigram |" in done.out


def test_what_misses_its_time_is_trained_again_and_the_closest_is_taken(monkeypatch):
    paces, sizes = iter([3.0, 1.5, 0.8]), []

    def measure(name: str, flags: list[str]) -> compare.Result:
        sizes.append(int(flags[flags.index("--steps") + 1]))
        return compare.Result(name, {"seconds": 60 * next(paces)}, [], 0, "")

    monkeypatch.setattr(compare, "_step_seconds", lambda flags, seconds: 0.01)
    monkeypatch.setattr(compare, "_measure", measure)
    assert compare.compete("mlp", "names", 60).summary == {"seconds": 48}
    assert sizes == [6000, 2000, 1333]
    paces = iter([1.05])
    assert compare.compete("mlp", "names", 60).summary == {"seconds": 63}


@pytest.mark.parametrize("row", ["SHAKESPEARE", "NAMES", "BABY"])
def test_the_speedruns_models_are_of_the_sizes_that_they_are_said_to_be(row):
    config, _ = parse(getattr(speedrun, row))
    alone = parse([*getattr(speedrun, row), "--hash-ngrams", "0", "--mix-ngram", "0"])[0]
    inside = [p.numel() for name, p in build_model(alone, 71).named_parameters() if "wte" not in name]
    if row == "BABY":
        assert (config.net.n_layer, config.net.n_head, config.net.n_embd, config.net.context) == (6, 6, 384, 256)
        assert 10.5e6 < sum(inside) < 10.7e6
    else:
        assert sum(inside) < 0.85e6 and config.net.mix_ngram == 0


def test_muon_is_timed_beside_that_of_torch_on_every_shape(monkeypatch, capsys):
    monkeypatch.setattr(muon, "MODELS", {"small": ["--n-layer", "1", "--n-head", "2", "--n-embd", "8"]})
    monkeypatch.setattr("sys.argv", ["muon", "--turns", "2"])
    threads = torch.get_num_threads()
    muon.main()
    torch.set_num_threads(threads)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[3:]]
    assert {row[1] for row in rows} == {"1 of 24x8", "1 of 8x8", "1 of 48x8", "1 of 8x24", "all"}
    assert all(float(number) > 0 for row in rows for number in row[2:])


@pytest.mark.parametrize("more", matrix([(), ("--mix-ngram", 2), ("--hash-ngrams", 2)], [("--mix-ngram", 2)]), ids=str)
def test_the_parts_of_a_step_add_up(cli, names, tmp_path, more):
    flags = ("--data", names, "--kind", "lines", "--n-embd", 8, "--n-layer", 1, "--steps", 3)
    first, second, *_ = ok(cli("-m bench.step", *flags, *more)).out.splitlines()
    assert re.fullmatch(r"[\d,]+ tokens/s, MFU [\d.]+% of the [\d.,]+ TFLOP/s of a matrix product here", second)
    whole, parts = re.fullmatch(r"([\d.]+) ms a step: (.*)", first).groups()
    found = dict(re.findall(r"([A-Za-z ]+?) ([\d.]+) \(\d+%\)", parts))
    expected = ["batches", "forward and backward", "clipping", "reading the loss", "Muon", "AdamW"]
    expected += ["SparseAdam"] * ("--hash-ngrams" in more)
    assert [name.strip() for name in found] == [*expected, "the rest"]
    assert 0 <= float(found.pop(" the rest")) < 0.5 * float(whole)
    assert sum(map(float, found.values())) <= float(whole) + 0.01 * len(found)
    assert list(tmp_path.glob("run*")) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "ngram"), "a model that counts takes no steps"),
        (("--model", "gru", "--n-head", 2), "--n-head means nothing to --model gru"),
        (("--out", "run"), "--out means nothing here"),
    ],
    ids=str,
)
def test_what_has_no_step_to_time_is_refused(cli, names, flags, words):
    refused(cli("-m bench.step", "--data", names, "--kind", "lines", *flags), words)


@pytest.mark.parametrize(
    "command, program",
    [("nanogpt_cpu --nanogpt", "model.py"), ("decoding --nanogpt", "model.py"), ("families --makemore", "makemore.py")],
)
def test_a_folder_that_is_no_checkout_of_a_peer_is_refused(cli, tmp_path, command, program):
    module, flag = command.split()
    done = cli(f"-m bench.{module}", flag, tmp_path)
    assert done.code == 2 and f"argument {flag}: {tmp_path} holds no {program}" in done.err


def test_lines_of_code_are_those_that_run():
    source = 'a = 1\n\n# b\n"""c\nd"""\ndef e():\n    """f"""\n    return ("g",\n      """h\ni""")\n'
    assert size.lines_of(source) == 5


def test_every_folder_has_a_line(cli):
    shown = ok(cli("-m bench.size")).out
    assert {line.split()[0] for line in shown.splitlines()} >= {"data", "kernels", "engine", "commands", "tests", "all"}


def test_processes_take_their_turns_and_have_a_row_each(monkeypatch, names, tmp_path, capsys):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    monkeypatch.setattr(processes, "SETUPS", [processes.SETUPS[n] for n in (1, 2, 4)])
    monkeypatch.setattr(processes, "PAUSE", 0)
    taken = processes.measure(["--data", str(names), *map(str, TINY["transformer"])], 2, 3, str(tmp_path))
    assert [len(turn.wall) for turns in taken.values() for turn in turns] == [3] * 6
    processes.report("adamw", taken)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 and "| 1.00 |" in rows[0] and "--shard" in rows[2]
    assert not multiprocessing.active_children()


def test_on_a_published_split_the_ngrams_learn_from_all_but_the_test(monkeypatch, tmp_path, capsys):
    words = {"ham": ["see", "you", "home"], "spam": ["win", "free", "cash"]}
    for side, count in (("train", 30), ("test", 4)):
        rows = [f"{label}\t{said[n % 3]} {n}\n" for n in range(count) for label, said in words.items()]
        (tmp_path / f"{side}.tsv").write_text("".join(rows), "utf-8")
    asked, learned = [], []
    found = {"test": {"accuracy": 0.5, "macro_f1": 0.25}}
    monkeypatch.setattr(classify, "one", lambda *call: asked.append(call) or found)
    baseline = classify.ngram_baseline
    monkeypatch.setattr(classify, "ngram_baseline", lambda *of: learned.append(len(of[0])) or baseline(*of))
    monkeypatch.setattr(
        "sys.argv", ["classify", "--data", str(tmp_path), "--published", "--seeds", "2", "--steps", "3"]
    )
    classify.main()
    assert asked == [(str(tmp_path), n, ["--steps", "3", "--seed", str(n), "--no-baseline"]) for n in (0, 1)]
    assert learned == [60] and capsys.readouterr().out.count("| 0.5000 | 0.2500 | 1.0000 | 1.0000 |") == 3
