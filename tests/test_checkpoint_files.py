"""Weights in several files with an index, as the Hub lays them out: the same runs, the same numbers, every damage."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.chaos.quiet import left as weights_of
from data.errors import UserError
from data.loaders import Loader
from engine import load_run
from engine.run import checkpoint, tensor_files
from tests.helpers import KILL, LINES, at_call, facts, metrics, ok, quick, refused, trained, tree
from tests.matrices import matrix
from tests.test_strangers import reseal, rewrite

SMALL = 2000  # bytes
INDEX = "model.safetensors.index.json"
DTYPES = [dtype for name in tensor_files._DTYPES if (dtype := getattr(torch, name))]
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=3)
pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@pytest.fixture
def small(monkeypatch):
    """Files hold at most `SMALL` bytes of tensors."""
    monkeypatch.setattr(tensor_files, "LIMIT", SMALL)


def content(parts) -> bytes:
    return b"".join(bytes(part) for part in parts)


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6), st.booleans())
@settings(max_examples=25)
def test_one_file_has_the_bytes_that_the_library_would_write(kinds, with_metadata):
    tensors = {name: (torch.rand(shape) * 9).to(dtype) for name, (dtype, shape) in kinds.items()}
    metadata = {"format": "pt"} if with_metadata else None
    ((file, parts),) = tensor_files.files_of("model", tensors, metadata)
    assert file == "model.safetensors" and content(parts) == safetensors.torch.save(tensors, metadata)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.dtype != torch.bfloat16}
    ((_, parts),) = tensor_files.files_of("model", arrays)
    assert content(parts) == safetensors.numpy.save(arrays)


def test_what_lies_in_memory_otherwise_is_written_in_order():
    tensors = {"t": torch.arange(6.0).view(2, 3).t(), "e": torch.ones(1).expand(4), "s": torch.arange(9)[::2]}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()} | {"big": np.arange(3, dtype=">f4")}
    for group, library in ((tensors, safetensors.torch), (arrays, safetensors.numpy)):
        ((_, parts),) = tensor_files.files_of("model", group)
        loaded = library.load(content(parts))
        assert all(np.array_equal(np.asarray(loaded[name]), np.asarray(group[name])) for name in group)


@given(st.dictionaries(NAMES, st.integers(0, 40), min_size=1, max_size=9), st.integers(1, 60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_tensors_come_back_from_any_number_of_files(tmp_path, sizes, limit):
    folder = tmp_path / "best"
    tensors = {name: torch.arange(size, dtype=torch.float32) for name, size in sizes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "LIMIT", limit)
        checkpoint.save(folder, {"model": tensors}, {"step": 1})
    loaded = checkpoint.load(folder, ("model",))[0]["model"]
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    arrays = checkpoint.load(folder, ("model",), "numpy")[0]["model"]
    assert all(np.array_equal(arrays[name], tensors[name]) for name in tensors)
    assert checkpoint.shapes(folder) == {name: (size,) for name, size in sizes.items()}
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        held = safetensors.torch.load_file(file)
        assert sum(tensor.nbytes for tensor in held.values()) <= limit or len(held) == 1
    if len(files) > 1:
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"] == {"total_size": sum(4 * size for size in sizes.values())}
        assert [file.name for file in files] == tensor_files.shard_names("model", len(files))
        assert set(index["weight_map"].values()) <= {file.name for file in files}
        assert set(index["weight_map"]) == set(sizes)
    listed = json.loads((folder / "manifest.json").read_text())
    assert set(listed) == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_writing_holds_one_tensor_a_second_time(tmp_path, monkeypatch):
    """And none, where it lies in the memory of the CPU already."""
    weight = torch.ones(1000)
    (_, part) = tensor_files._parts({"w": weight}, None)
    assert np.shares_memory(np.asarray(part), weight.numpy())
    made = []
    monkeypatch.setattr(tensor_files, "_bytes_of", lambda tensor: made.append(len(made)) or b"\0" * tensor.nbytes)
    monkeypatch.setattr(checkpoint, "write_parts", lambda path, parts: [path.write_bytes(b"") for part in parts])
    parts = tensor_files._parts({str(n): weight for n in range(5)}, None)
    next(parts)
    assert [next(parts) and len(made) for _ in range(5)] == [1, 2, 3, 4, 5]


CASES = {
    "transformer": ("transformer", LINES | {"dropout": 0.2, "n_embd": 32, "optimizer": "muon"}),
    "mixture": ("lstm", LINES | {"mix_ngram": 3}),
}


@pytest.mark.parametrize("case", matrix(CASES, ["transformer"]))
def test_a_run_in_several_files_is_the_run_in_one(cli, case, monkeypatch):
    model, flags = CASES[case]
    ok(cli("train.py", *quick(model, **flags, out="one")))
    monkeypatch.setattr(tensor_files, "LIMIT", SMALL)
    with at_call(Loader, "deal", 5, KILL):
        cli("train.py", *quick(model, **flags))
    assert facts(Path("run"))["step"] == 3
    assert len(list(Path("run/last").glob("trainer-*-of-*.safetensors"))) > 2
    ok(cli("train.py", "--resume", "--out", "run"))
    for which, names in (("best", ("model",)), ("last", ("model", "trainer"))):
        (one, _), (several, _) = (checkpoint.load(Path(run) / which, names) for run in ("one", "run"))
        for name in names:
            assert one[name].keys() == several[name].keys()
            assert all(torch.equal(one[name][key], several[name][key]) for key in one[name])
    drop = [{key: value for key, value in line.items() if key != "seconds"} for line in metrics()]
    assert drop == [{key: value for key, value in line.items() if key != "seconds"} for line in metrics("one")]
    assert Path("one/samples.txt").read_bytes() == Path("run/samples.txt").read_bytes()
    assert len(weights_of(Path("run"))) > len(weights_of(Path("one")))
    same = [ok(cli("sample.py", run, "--score", "emma")).out for run in ("one", "run")]
    assert same[0] == same[1]
    monkeypatch.setattr(tensor_files, "LIMIT", 4 << 30)  # a save is one file again, and the others are gone
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 7))
    assert {path.name for path in Path("run/last").iterdir()} == {path.name for path in Path("one/last").iterdir()}


def test_other_commands_start_from_it(cli, small, tmp_path):
    run = trained(cli, "gru", **LINES, context=16)
    shutil.rmtree(run)  # it may have been made before, in one file
    ok(cli("train.py", *quick("gru", **LINES, context=16)))
    assert (run / "best" / INDEX).exists()
    ok(cli("-m makemore.scratch.train", "--model", "gru", "--init", "run", "--steps", 2, "--out", "numpy"))
    assert (tmp_path / "numpy/best" / INDEX).exists() and load_run(tmp_path / "numpy").model
    (tmp_path / "labels.tsv").write_text("".join(f"{'ab'[n % 2]}\t{'ab'[n % 2]}{n}\n" for n in range(40)))
    words = ["-m finetune.classify", "--data", "labels.tsv", "--init", "run", "--steps", 4, "--batch-size", 4]
    ok(cli(*words, "--extend-vocabulary", "--train", "head", "--out", "tuned"))
    assert (tmp_path / "tuned/base" / INDEX).exists()
    ok(cli("-m finetune.classify", "--out", "tuned", "--predict", "a"))


def test_transformers_loads_the_exported_files(cli, small, tmp_path):
    ok(cli("train.py", *quick("transformer", **LINES, n_embd=32)))
    ok(cli("-m export", "run", "--to", "hf", "hub"))
    index = json.loads(Path("hub", INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2 and not Path("hub/model.safetensors").exists()
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(report.values())
    run = load_run(tmp_path / "run", device="cpu")
    tokens = torch.tensor([[run.tokenizer.special.bos, *run.tokenizer.encode("emma").tolist()]])
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, run.model(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.fixture
def best(tmp_path, small) -> Path:
    """A checkpoint of three files."""
    folder = tmp_path / "best"
    checkpoint.save(folder, {"model": {name: torch.full((400,), ord(name[0]) * 1.0) for name in "abc"}}, {})
    assert len(list(folder.glob("model-*"))) == 3
    return folder


def shard(folder: Path, n: int) -> Path:
    return folder / f"model-{n:05d}-of-00003.safetensors"


def reindex(folder: Path, change) -> None:
    """Change the index as somebody would who knows how: the manifest goes with it."""
    index = json.loads((folder / INDEX).read_text())
    reseal(folder, INDEX, json.dumps(change(index) or index).encode())


def moved(name: str, file: str):
    return lambda index: index["weight_map"].update({name: file})


def refill(folder: Path, n: int, names: str) -> None:
    reseal(folder, shard(folder, n).name, safetensors.torch.save({name: torch.zeros(400) for name in names}))


def twice(folder: Path) -> None:
    """`a` stands in the index twice, and in two files."""
    refill(folder, 2, "ab")
    written = (folder / INDEX).read_text()
    entry = '"weight_map": {\n'
    assert entry in written
    reseal(folder, INDEX, written.replace(entry, f'{entry}"a": "{shard(folder, 2).name}",').encode())


def single_beside(folder: Path) -> None:
    reseal(folder, "model.safetensors", safetensors.torch.save({"a": torch.zeros(400)}))


DAMAGE = {
    "a missing file": (lambda folder: shard(folder, 2).unlink(), "cannot read .*model-00002-of-00003.safetensors"),
    "a file cut short": (lambda f: shard(f, 3).write_bytes(shard(f, 3).read_bytes()[:-1]), "00003.* damaged: .* bytes"),
    "files exchanged": (lambda f: shutil.copy(shard(f, 1), shard(f, 2)), "model-00002.* its SHA-256 is not"),
    "another's index": (lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace("4800", "4801")), "SHA-256"),
    "no index": (lambda folder: (folder / INDEX).unlink(), "cannot read .*index.json"),
    "not listed": (
        lambda f: rewrite(f / "manifest.json", lambda m: {n: e for n, e in m.items() if n != INDEX}),
        "does not list model.safetensors",
    ),
    "a file not listed": (
        lambda f: rewrite(f / "manifest.json", lambda m: {n: e for n, e in m.items() if "00002-" not in n}),
        "does not list model-00002-of-00003",
    ),
    "one file beside": (single_beside, "lists model.safetensors and model.safetensors.index.json"),
    "a file outside": (
        lambda f: reindex(f, moved("b", "../other/model-00002-of-00003.safetensors")), "names ../other/model-00002"
    ),
    "an absolute file": (lambda f: reindex(f, moved("b", "/etc/passwd")), "names /etc/passwd"),
    "another group": (lambda f: reindex(f, moved("b", "trainer-00002-of-00003.safetensors")), "names trainer-00002"),
    "another number": (
        lambda f: reindex(f, moved("b", "model-00002-of-00004.safetensors")), "names model-00002-of-00004"
    ),
    "no file": (lambda f: reindex(f, moved("b", 3)), "weight_map.b is 3"),
    "a wrong place": (lambda f: reindex(f, moved("b", shard(f, 1).name)), "index.json"),
    "a place of nothing": (lambda f: reindex(f, moved("d", shard(f, 1).name)), "00001.* lacks d"),
    "a tensor twice": (lambda f: refill(f, 2, "ab"), "00002.* also has a"),
    "listed twice": (twice, "00002.* also has a"),
    "a tensor less": (lambda f: refill(f, 2, ""), "00002.* lacks b"),
    "a wrong size": (lambda f: reindex(f, lambda i: i["metadata"].update(total_size=1)), "says 1 bytes of tensors"),
    "no size": (lambda f: reindex(f, lambda i: {"weight_map": i["weight_map"]}), "metadata is missing"),
    "nothing": (lambda f: reseal(f, INDEX, b"{}"), "metadata is missing"),
    "no JSON": (lambda f: reseal(f, INDEX, b"\x80"), "not JSON"),
    "a list": (lambda f: reindex(f, lambda i: i | {"weight_map": []}), "weight_map is"),
    "no tensors": (lambda f: reseal(f, shard(f, 1).name, b"\xff" * 20), "00001.* is not a safetensors file"),
}  # fmt: skip
SEEN_IN_HEADERS = {"a file outside", "a place of nothing", "a tensor twice", "another group", "an absolute file"}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_damage_is_named(best, case, kind):
    damage, message = DAMAGE[case]
    damage(best)
    before = tree(best)
    with pytest.raises(UserError, match=message):
        checkpoint.load(best, ("model",), kind)
    if case in SEEN_IN_HEADERS:
        with pytest.raises(UserError, match=message):
            checkpoint.shapes(best)
    assert tree(best) == before


def test_the_index_of_another_save_is_refused(best, tmp_path):
    """Even where it is sealed: of as many files, and of more."""
    for names, message in (
        ("abx", "00003.* also has c|00003.* lacks x"),
        ("abcd", "does not list model-00001-of-00004"),
    ):
        other = tmp_path / names
        checkpoint.save(other, {"model": {name: torch.zeros(400) for name in names}}, {})
        reseal(best, INDEX, (other / INDEX).read_bytes())
        with pytest.raises(UserError, match=message):
            checkpoint.load(best, ("model",))


def test_damage_through_the_command_line(cli, small):
    ok(cli("train.py", *quick("gru", **LINES)))
    first = sorted(Path("run/best").glob("model-00001-*"))[0]
    first.unlink()
    refused(cli("sample.py", "run"), f"cannot read {first}", "--checkpoint last takes the other one")
    ok(cli("sample.py", "run", "--num", 1, "--checkpoint", "last"))
    sha = hashlib.sha256((Path("run/last") / INDEX).read_bytes()).hexdigest()
    assert json.loads(Path("run/last/manifest.json").read_text())[INDEX]["sha256"] == sha
