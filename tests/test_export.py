"""Out to the Hub's layout: `transformers` loads the folder, and says and reads the same as we do."""

import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data import bpe
from data.errors import UserError
from data.gpt2 import GPT2Tokenizer, read_merges
from data.tokenizers import ByteTokenizer, CharTokenizer
from engine.config.presets import TRANSFORMERS
from engine.config.settings import flat
from engine.registry import build_model
from export import hub
from export.hub_weights import counterpart
from tests.conftest import ROOT
from tests.helpers import configure
from tests.test_gpt2 import FILE

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
HARD = "e\u0301 naïve 漢字 👩\u200d👧 <eos><unk>  \r\n\t\x85\u2028 don't 1849"
PROSE = "the sea, the sea, the open sea: it's 1849 and the shells sing naïve songs\n"
TOKENIZERS = {
    "char": lambda: CharTokenizer(PROSE),
    "byte": ByteTokenizer,
    "bpe": lambda: bpe.learn([PROSE, HARD], 300),
    "gpt2": lambda: GPT2Tokenizer(read_merges(FILE)),
}
SMALL = {"model": "transformer", "n_layer": 2, "n_head": 4, "n_embd": 16, "context": 12, "tokenizer": "char"}
MODERN = TRANSFORMERS["modern"]
LLAMA = {"positions": "rope", "norm": "rms", "activation": "swiglu"}
MODELS = {
    "gpt2": ({}, "gpt2"),
    "without biases": ({"bias": False}, "gpt2"),
    "untied": ({"tie_head": False, "bias": False, "activation": "gelu_tanh"}, "gpt2"),
    "llama": (LLAMA | {"bias": False}, "llama"),
    "llama with biases": (LLAMA, "llama"),
    "llama with layer norm": (LLAMA | {"bias": False, "norm": "layer"}, "llama"),
    "llama grouped untied": (LLAMA | {"bias": False, "n_kv_head": 2, "tie_head": False}, "llama"),
    "llama with relu2": (LLAMA | {"activation": "relu2"}, "llama"),
    "modern": (MODERN, "qwen3"),
    "modern with relu2": (MODERN | {"activation": "relu2"}, "qwen3"),
    "modern with rms": (MODERN | {"norm": "rms"}, "qwen3"),
    "modern grouped untied": (MODERN | {"n_kv_head": 2, "tie_head": False}, "qwen3"),
}


def made(tokenizer, **options):
    """A Transformer with large random weights and its settings."""
    config = configure(**SMALL | options)
    torch.manual_seed(0)
    model = build_model(config, tokenizer.vocab_size, tokenizer.special).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return model, flat(config)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_logits_equal_ours(tmp_path, kind):
    options, expected = MODELS[kind]
    tokenizer = TOKENIZERS["char"]()
    model, settings_ = made(tokenizer, **options)
    assert hub.save(model, tokenizer, settings_, tmp_path / "out", "") == expected
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    tokens = torch.randint(tokenizer.vocab_size, (3, 12))
    assert torch.allclose(theirs.eval()(tokens).logits, model(tokens).logits, atol=1e-5)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Each tokenizer of ours with what AutoTokenizer makes of its folder."""
    found = {}
    for name, make in TOKENIZERS.items():
        tokenizer, folder = make(), tmp_path_factory.mktemp(name)
        model, settings_ = made(tokenizer, n_embd=4, n_layer=1)
        hub.save(model, tokenizer, settings_, folder, "")
        found[name] = tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example(text=HARD)
@example(text=PROSE)
def test_ids_and_text_equal_ours(both, name, text):
    ours, theirs = both[name]
    ids = ours.encode(text, "mask").tolist()
    assert theirs(text)["input_ids"] == ids
    if ours.special.unk not in ids:
        assert theirs.decode(ids) == text


def test_a_text_begins_with_the_special_of_lines(tmp_path):
    tokenizer = TOKENIZERS["char"]()
    model, settings_ = made(tokenizer)
    hub.save(model, tokenizer, settings_, tmp_path, "<bos>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("sea")["input_ids"] == [1, *tokenizer.encode("sea")]
    assert set(theirs("sea")) == {"input_ids", "attention_mask"} == set(theirs.model_input_names)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2, 3)
    assert theirs.decode([1, *tokenizer.encode("sea"), 2], skip_special_tokens=True) == "sea"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("--preset gpt2", "a gpt2"), ("--preset modern", "a qwen3"), ("--activation relu2", "a qwen3")],
)
def test_greedy_continuations_equal_ours(tmp_path, cli, text, flags, expected):
    quick = ("--n-embd", 16, "--n-head", 2, "--n-layer", 1, "--context", 32, "--batch-size", 4, "--steps", 5)
    assert cli("train.py", *flags.split(), "--data", text, *quick, "--out", "run").code == 0
    done = cli("-m export", "run", "--to", "hf", "out")
    assert done.code == 0 and f"wrote out, {expected}" in done.out, done.err
    assert "its logits in transformers" in done.out and ("--activation swiglu" in done.out) == ("relu2" in flags)
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "| trained on | text |" in card and "| context | 32 tokens |" in card and "| validation loss | " in card
    assert {file.name for file in (tmp_path / "out").iterdir() if file.stat().st_mode & 0o044 != 0o044} == set()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    drawn = theirs.generate(
        **read("emma", return_tensors="pt"), max_new_tokens=12, do_sample=False, pad_token_id=read.pad_token_id
    )
    ours = cli("sample.py", "run", "--prompt", "emma", "--max-new-tokens", 12, "--temperature", 0, "--json")
    assert read.decode(drawn[0]) == json.loads(ours.out)["text"]
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "out"))  # it would write 256 tokens
    assert len(read(pipeline("emma")[0]["generated_text"])["input_ids"]) == 32
    again = cli("-m export", "run", "--to", "hf", "out")
    assert again.code == 2 and "out already exists" in again.err
    unknown = cli("-m export", "run", "--to", "ggml", "other")
    assert unknown.code == 2 and "unknown format 'ggml'" in unknown.err


@torch.no_grad()
def test_gpt2_goes_out_as_it_came_in(tmp_path, cli):
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "merges.txt").write_text(FILE, "utf-8")
    assert cli("-m export", "gpt2:in", "--to", "hf", "out").code == 0
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(50_257, (2, 16))
    assert back.config.vocab_size == 50_257 and torch.allclose(back(tokens).logits, theirs(tokens).logits, atol=1e-5)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read.eos_token_id == read.bos_token_id == 50_256 and len(read) == 50_257


REFUSED = {
    "window": ({"window": 4}, "--window 4 is no part of a GPT-2"),
    "rms": ({"norm": "rms"}, "--norm rms is no part of a GPT-2"),
    "grouped": ({"n_kv_head": 2}, "--n-kv-head 2 is no part of a GPT-2"),
    "head bias": ({"tie_head": False}, "--no-tie-head with biases is no part"),
    "qk-norm": ({"qk_norm": True}, "--qk-norm is no part of a GPT-2"),
    "relu2": ({"activation": "relu2"}, "--activation relu2 is no part of a GPT-2"),
    "alibi": ({"positions": "alibi"}, "--positions alibi is no part of a GPT-2 .* a Llama or a Qwen3"),
    "gelu": (MODERN | {"activation": "gelu"}, "--activation gelu is no part of .* a Llama"),
    "batch norm": (MODERN | {"norm": "batch"}, "--norm batch is no part of .* a Llama"),
    "biases": (LLAMA | {"norm": "layer"}, "--bias is no part of .* a Llama"),
    "capped": ({"logit_cap": 30.0}, "--logit-cap 30.0 is no part of a GPT-2"),
    "capped modern": (MODERN | {"logit_cap": 30.0}, "--logit-cap 30.0 is no part of .* a Llama"),
    "value residual": ({"value_residual": True}, "--value-residual is no part of a GPT-2"),
    "value embeddings": (MODERN | {"value_embeddings": True}, "--value-embeddings is no part of .* a Llama"),
    "hashed n-grams": (MODERN | {"hash_ngrams": 3}, "--hash-ngrams 3 is no part of .* a Llama"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_none_of_the_three_can_be_is_refused(tmp_path, case):
    options, message = REFUSED[case]
    tokenizer = TOKENIZERS["char"]()
    model, settings_ = made(tokenizer, **options)
    with pytest.raises(UserError, match=message):
        hub.save(model, tokenizer, settings_, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_an_export_that_computes_something_else_is_not_left_behind(cli, text, tmp_path):
    quick = ("--n-embd", 16, "--n-head", 2, "--n-layer", 1, "--context", 16, "--batch-size", 4, "--steps", 2)
    assert cli("train.py", "--data", text, *quick, "--out", "run").code == 0

    def spoiled(*how):
        config, weights = counterpart(*how)
        return config | {"rms_norm_eps": 0.5}, weights

    with mock.patch.object(hub, "counterpart", spoiled):
        done = cli("-m export", "run", "--to", "hf", "out")
    assert done.code == 1 and "what is in out computes other logits than the run" in done.err
    assert not (tmp_path / "out").exists()


def test_transformers_does_not_take_our_kernels_for_the_package_of_that_name():
    """From the project's root, where `import kernels` finds ours."""
    ask = (
        "from transformers.utils import is_kernels_available as there; import kernels; print(there(), kernels.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(ROOT / "kernels/__init__.py")]


def test_another_family_is_refused(cli, names):
    quick = ("--n-embd", 8, "--steps", 2, "--batch-size", 4)
    assert cli("train.py", "--model", "gru", "--data", names, "--kind", "lines", *quick, "--out", "run").code == 0
    refused = cli("-m export", "run", "--to", "hf", "out")
    assert refused.code == 2 and "run is a gru: transformers has a class for Transformers alone" in refused.err
