"""GPT-2's weights in: a random GPT-2 of `transformers` in the Hub's layout gives the same logits here."""

import json

import pytest
import safetensors.torch
import torch
import transformers

from data.errors import UserError
from data.gpt2 import WRITTEN
from engine.run.load import load_pretrained, load_run
from nanogpt import pretrained
from nanogpt.config import TransformerConfig
from nanogpt.model import Transformer
from tests.helpers import LINES, STREAM, once, quick, refused
from tests.test_gpt2 import FILE

SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 24}


def make_gpt2(folder, vocab_size: int = 61, shards: bool = False, **options):
    """A GPT-2 with large random weights, saved as the Hub has it; in evaluation mode."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=vocab_size, **SIZES | options)
    model = transformers.GPT2LMHeadModel(config).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
    return model


def ours(folder, context: int = 24) -> Transformer:
    """The same model here, without a tokenizer."""
    settings = pretrained.read_settings(folder)
    sizes = {name: settings[name] for name in ("n_layer", "n_head", "n_embd", "activation")}
    weights = pretrained.read_weights(folder, context)
    rows = [*range(len(weights["wte.weight"])), *[-1] * 5]
    sizes["tie_head"] = settings["tie_head"]
    model = Transformer(len(rows), TransformerConfig(context=context, weight_init="torch", **sizes))
    model.load_state_dict(pretrained.with_ids(weights, rows))
    return model.eval()


@pytest.mark.parametrize("shards", [False, True])
@torch.no_grad()
def test_logits_equal_those_of_transformers(tmp_path, shards):
    theirs = make_gpt2(tmp_path, shards=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    tokens = torch.randint(61, (3, 24))
    logits = ours(tmp_path)(tokens).logits
    assert torch.allclose(logits[..., :61], theirs(tokens).logits, atol=1e-5)
    cropped = ours(tmp_path, context=10)
    assert torch.allclose(cropped(tokens[:, :10]).logits, logits[:, :10], atol=1e-6)
    assert cropped.context == 10 and torch.equal(cropped.wte.weight[61:], cropped.wte.weight[:61].mean(0).expand(5, -1))


@torch.no_grad()
def test_names_with_and_without_a_prefix_masks_and_a_stored_head_are_one(tmp_path):
    theirs = make_gpt2(tmp_path)
    plain = safetensors.torch.load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in plain.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    bare["lm_head.weight"] = bare["wte.weight"].clone()
    safetensors.torch.save_file(bare, tmp_path / "model.safetensors")
    tokens = torch.randint(61, (2, 9))
    assert torch.allclose(ours(tmp_path)(tokens).logits[..., :61], theirs(tokens).logits, atol=1e-5)


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


MISTAKES = {
    "activation": ({"activation_function": "swish"}, "activation_function is 'swish', which this Transformer"),
    "eps": ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    "untied": ({"tie_word_embeddings": False}, "has no lm_head.weight of the embedding's shape"),
    "size": ({"n_embd": "32"}, "n_embd is '32', not a number"),
    "shape": ({"vocab_size": 60}, r"wte.weight has the shape \(61, 32\), config.json asks for \(60, 32\)"),
    "missing": ({"n_layer": 4}, "lacks 12 of a GPT-2's weights: h.3.attn.c_attn.bias"),
    "unexpected": ({"n_layer": 2}, "has 12 weights that a GPT-2 has not: h.2.attn.c_attn.bias"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_no_such_gpt2_is_refused_by_name(tmp_path, case):
    make_gpt2(tmp_path)
    values, message = MISTAKES[case]
    change(tmp_path, **values)
    with pytest.raises(UserError, match=message):
        pretrained.read_weights(tmp_path, 24)


def test_files_that_are_missing_damaged_or_elsewhere_are_refused(tmp_path):
    with pytest.raises(UserError, match="config.json.*name a folder in the Hub's layout"):
        pretrained.read_settings(tmp_path)
    make_gpt2(tmp_path)
    with pytest.raises(UserError, match="--context 25 is more than the 24 positions"):
        pretrained.read_weights(tmp_path, 25)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(UserError, match="cannot read .*model.safetensors"):
        pretrained.read_weights(tmp_path, 24)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="is a pickle: not read"):
        pretrained.read_weights(tmp_path, 24)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../other.safetensors"}}')
    with pytest.raises(UserError, match="names a file outside its folder"):
        pretrained.read_weights(tmp_path, 24)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        pretrained.read_settings(tmp_path)


@pytest.fixture
def gpt2_folder(tmp_path):
    """A GPT-2 of the true vocabulary, small, its (made-up) merges beside it."""
    folder = tmp_path / "gpt2"
    make_gpt2(folder, 50_257, n_layer=1, n_head=2, n_embd=8, n_positions=16)
    (folder / "merges.txt").write_text(FILE, "utf-8")
    return folder


def test_a_folder_with_its_merges_samples_scores_and_starts_runs(cli, gpt2_folder, text, names):
    gpt2 = f"gpt2:{gpt2_folder}"
    drawn = cli("sample.py", gpt2, "--prompt", "the sea", "--max-new-tokens", 5, "--seed", 1)
    assert drawn.code == 0 and drawn.out.startswith("the sea"), drawn.err
    scored = json.loads(cli("sample.py", gpt2, "--score", "sea shells", "--json").out)
    assert scored["bits_per_char"] > 0
    quick = ("--steps", 2, "--batch-size", 2, "--out", "run")
    tuned = cli("train.py", "--init", gpt2, "--data", text, *quick, "--context", 8)
    assert tuned.code == 0 and "50262 ids" in tuned.out, tuned.err
    stored = json.load(open("run/config.json"))["config"]
    assert (stored["context"], stored["tokenizer"], stored["activation"]) == (8, "gpt2", "gelu_tanh")
    assert cli("train.py", "--resume", "--out", "run", "--steps", 3).code == 0
    sorted_out = cli("train.py", "--init", gpt2, "--data", text, *quick, "--context", 17, "--overwrite")
    assert sorted_out.code == 2 and "more than the 16 positions" in sorted_out.err
    refused = cli("train.py", "--init", gpt2, "--data", text, *quick, "--n-layer", 2, "--overwrite")
    assert refused.code == 2 and "--init cannot change --n-layer 2" in refused.err
    table = "".join(f"{label}\t{label * 3} {n}\n" for n in range(20) for label in "ab")
    open("x.tsv", "w").write(table)
    labelled = cli(
        "-m finetune.classify", "--init", gpt2, "--data", "x.tsv", "--train", "lora", *quick[:4], "--out", "c"
    )
    assert labelled.code == 0, labelled.err
    assert json.loads(cli("-m finetune.classify", "--out", "c", "--predict", "aaa").out)["label"] in "ab"
    refused = cli("sample.py", gpt2, "--chat")
    assert refused.code == 2 and "never learned to answer" in refused.err
    open("x.jsonl", "w").write("".join(json.dumps({"prompt": f"a {n}", "completion": "b"}) + "\n" for n in range(30)))
    taught = ("--data", "x.jsonl", "--train", "lora", *quick[:4], "--max-answer", 2, "--out", "d")
    answering = cli("-m finetune.instruct", "--init", gpt2, *taught)
    assert answering.code == 0, answering.err
    assert cli("sample.py", "d", "--chat", "--message", "a 3").code == 0
    table = load_run("d").model.wte.weight
    special = load_run("d").tokenizer.special
    assert not torch.equal(table[special.user], table[special.assistant])
    assert torch.equal(table[special.bos], load_run(gpt2).model.wte.weight[special.bos])


def test_loading_one_keeps_its_untouched_rows(gpt2_folder):
    run = load_run(f"gpt2:{gpt2_folder}")
    assert run.model.vocab_size == 50_262 and run.config.net.context == 16 and run.tokenizer.name == "gpt2"
    with pytest.raises(UserError, match="nowhere"):
        load_run("gpt2:nowhere")
    change(gpt2_folder, vocab_size=50_000)
    with pytest.raises(UserError, match="wte.weight has the shape"):
        load_pretrained(gpt2_folder, None)


def own_vocabulary(folder, **options):
    """A GPT-2 with a tokenizer of its own, and that tokenizer as `transformers` reads it."""
    merges = ["s h", "sh e", "e l", "el l", "Ġ s", "Ġs e", "Ġse a"]
    tokens = ["<|endoftext|>", *sorted(WRITTEN.values(), reverse=True), *(merge.replace(" ", "") for merge in merges)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    written = {
        "version": "1.0", "pre_tokenizer": level, "decoder": level, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": 0, "content": tokens[0], "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False}],
        "model": {"type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}, "merges": merges},
    }  # fmt: skip
    theirs = make_gpt2(folder, len(tokens) + 3, eos_token_id=0, **options)  # three ids that nothing uses
    (folder / "tokenizer.json").write_text(json.dumps(written), "utf-8")
    return theirs, transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["silu", "tanh", "relu", "gelu"])
def test_a_vocabulary_of_its_own_gives_the_same_probabilities(tmp_path, activation):
    theirs, learned = own_vocabulary(tmp_path, activation_function=activation, tie_word_embeddings=activation != "silu")
    run, text = load_run(f"gpt2:{tmp_path}"), "the sea ñ shells"
    ids, there = run.tokenizer.encode(text), learned.encode(text)
    rows = pretrained.read_vocabulary(tmp_path).rows
    assert (
        [rows[id_] for id_ in ids] == there
        and run.tokenizer.decode(ids) == text
        and rows[run.tokenizer.special.eos] == 0
    )
    ours = run.model(torch.from_numpy(ids.astype("int64"))[None]).logits[0]
    known = [n for n, row in enumerate(rows) if row >= 0]
    expected = theirs(torch.tensor([there])).logits[0][:, [rows[n] for n in known]]
    assert torch.allclose(ours[:, known], expected, atol=1e-4)


@pytest.mark.parametrize("size", [50_258, 50_304])
def test_a_gpt2_with_more_ids_is_read_without_them(gpt2_folder, size):
    make_gpt2(gpt2_folder, size, n_layer=1, n_head=2, n_embd=8, n_positions=16)
    run = load_run(f"gpt2:{gpt2_folder}")
    stored = safetensors.torch.load_file(gpt2_folder / "model.safetensors")["transformer.wte.weight"]
    assert run.model.vocab_size == 50_262 and torch.equal(run.model.wte.weight[:50_257], stored[:50_257])


SHAPES = {
    "qwen3": (),
    "qwen3 with relu2": ("--norm", "layer", "--positions", "rope", "--qk-norm", "--activation", "relu2", "--no-bias"),
    "llama": ("--norm", "rms", "--no-qk-norm", "--activation", "swiglu", "--tokenizer", "bpe:280"),
    "gpt2": ("--preset", "gpt2", "--activation", "tanh", "--no-tie-head", "--no-bias", "--tokenizer", "byte"),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("of", ["text", "names"])
def test_what_was_exported_comes_back(cli, names, text, kind, of):
    once(cli, "train.py", *quick("transformer", **(STREAM if of == "text" else LINES)), *SHAPES[kind])
    assert cli("-m export", "run", "--to", "hf", "out").code == 0
    assert json.load(open("out/config.json"))["model_type"] == kind.split()[0]
    for words in (["--prompt", "e", "--temperature", 0, "--num", 1], ["--score", "eea"]):
        here, there = (cli("sample.py", run, *words) for run in ("run", "hf:out"))
        assert here.code == there.code == 0 and here.out == there.out, there.err
    tuned = cli("train.py", "--init", "hf:out", "--data", names, "--steps", 2, "--out", "tuned")
    assert tuned.code == 0, tuned.err
    before, after = (json.load(open(f"{run}/config.json"))["config"] for run in ("run", "tuned"))
    assert [before[name] for name in ("tokenizer", "activation")] == [
        after[name] for name in ("tokenizer", "activation")
    ]


def test_what_no_model_here_computes_is_refused(cli, names, text, tmp_path):
    once(cli, "train.py", *quick("transformer", **STREAM), *SHAPES["qwen3 with relu2"])
    assert cli("-m export", "run", "--to", "hf", "out").code == 0
    path = tmp_path / "out" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    for name, factor, message in (
        ("model.layers.0.self_attn.q_norm.weight", 2.0, "learned weights of QK-norm"),
        ("model.layers.0.mlp.gate_proj.weight", 2.0, "gates of ReLU"),
        ("model.embed_tokens.weight", 0.0, "is not free of its mean"),
    ):
        safetensors.torch.save_file(weights | {name: weights[name] * factor + (not factor)}, path)
        refused(cli("sample.py", "hf:out"), message)
    safetensors.torch.save_file(weights, path)
    stored = json.loads((tmp_path / "out" / "tokenizer.json").read_text("utf-8"))
    for changed, message in (
        ({"normalizer": {"type": "NFKC"}}, "changes texts before it splits them"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no tokenizer here is"),
        ({"model": {"type": "Unigram", "vocab": []}}, "tokenizer.json"),
        ({"added_tokens": [{"id": "x", "content": "<eos>"}]}, "added_tokens"),
    ):
        (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(stored | changed), "utf-8")
        refused(cli("sample.py", "hf:out"), message)
