"""Out to llama.cpp: what stands in the file, that byte pairs read texts as ours do, and llama.cpp itself at work,
where node-llama-cpp is installed."""

import functools
import json
import subprocess
from pathlib import Path

import gguf as library
import pytest
import regex
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.gpt2 import WRITTEN
from data.tokenizers import CharTokenizer, Tokenizer
from data.words import GPT2_PATTERN
from export import gguf, gguf_tokenizer
from tests.conftest import ROOT
from tests.helpers import MODULES, needs_modules, ok, quick, refused
from tests.test_export import HARD, LLAMA, MODERN, PROSE, TOKENIZERS, made

TIE = 0.02  # of logits, of which the largest are 10 and more
LAYOUTS = {
    "gpt2": ({"activation": "gelu_tanh"}, "gpt2"),
    "gpt2 with exact GELU, without biases": ({"bias": False}, "gpt2"),
    "gpt2 untied": ({"tie_head": False, "bias": False}, "gpt2"),
    "qwen3": (MODERN, "qwen3"),
    "qwen3 grouped untied": (MODERN | {"n_kv_head": 2, "tie_head": False, "norm": "rms"}, "qwen3"),
    "llama": (LLAMA | {"bias": False}, "llama"),
    "llama with biases": (LLAMA, "llama"),
    "llama grouped with layer norm": (LLAMA | {"bias": False, "norm": "layer", "n_kv_head": 2}, "llama"),
    "arcee": (LLAMA | {"activation": "relu2", "bias": False}, "arcee"),
}


def written(folder: Path, tokenizer, starts="", template=None, **options):
    """The model, its file and the file's architecture."""
    model, settings_ = made(tokenizer, **options)
    path = folder / "model.gguf"
    return model, path, gguf.save(model, tokenizer, settings_, path, starts, template)


def read(path: Path) -> tuple[dict, dict]:
    """The facts and the tensors of a file."""
    reader = library.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return facts, {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_has_the_weights_and_says_what_they_are(tmp_path, layout):
    options, expected = LAYOUTS[layout]
    model, path, arch = written(tmp_path / "out", TOKENIZERS["char"](), "<bos>", **options)
    facts, tensors = read(path)
    sizes = {
        f"{arch}.{name}": facts[f"{arch}.{name}"] for name in ("block_count", "context_length", "embedding_length")
    }
    assert arch == facts["general.architecture"] == expected and list(sizes.values()) == [2, 12, 16]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    block = model.h[1]
    if arch == "gpt2":
        assert torch.equal(tensors["blk.1.attn_qkv.weight"], block.attn.c_attn.weight)
        assert torch.equal(tensors["blk.1.ffn_down.weight"], block.mlp.c_proj.weight)
        assert torch.equal(tensors["position_embd.weight"], model.wpe.weight)
        return
    assert facts[f"{arch}.rope.freq_base"] == 10_000 and facts[f"{arch}.rope.dimension_count"] == 4
    assert facts[f"{arch}.attention.head_count_kv"] == (options.get("n_kv_head") or 4)
    assert ("blk.1.ffn_gate.weight" in tensors) == (arch != "arcee")
    if arch == "qwen3":
        assert len(tensors["blk.1.attn_q_norm.weight"]) == 4
    else:  # rows 0, 1, 2, 3 of a head, of which 0 and 2 are turned together
        head = block.attn.c_attn.weight[4:8]
        assert torch.equal(tensors["blk.1.attn_q.weight"][4:8], head[[0, 2, 1, 3]])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
@example(text=HARD)
@example(text=PROSE)
def test_byte_pairs_read_a_text_as_our_tokenizers_do(name, text):
    tokenizer, tokens, merges = vocabulary_of(name)
    assert _by_merges(text, tokens, merges) == tokenizer.encode(text, "skip").tolist()


@functools.cache
def vocabulary_of(name: str) -> tuple[Tokenizer, dict[str, int], dict[str, int]]:
    """A tokenizer of ours, the ids of its tokens, and the ranks of its merges."""
    tokenizer = CharTokenizer(PROSE + HARD) if name == "char" else TOKENIZERS[name]()
    tokens, merges = gguf_tokenizer.vocabulary(tokenizer)
    return tokenizer, {t: n for n, t in enumerate(tokens)}, {m: n for n, m in enumerate(merges)}


def _by_merges(text: str, tokens: dict[str, int], merges: dict[str, int]) -> list[int]:
    """The ids of a text as llama.cpp finds them: words, their bytes merged by rank, and of what then is no
    token those bytes of UTF-8 that are."""
    found = []
    for word in regex.findall(GPT2_PATTERN, text):
        parts = [WRITTEN[byte] for byte in word.encode()]
        while pairs := [(merges[f"{a} {b}"], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                        if f"{a} {b}" in merges]:  # fmt: skip
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        for part in parts:
            found += (
                [tokens[part]]
                if part in tokens
                else [tokens[chr(byte)] for byte in part.encode() if byte < 0x80 and chr(byte) in tokens]
            )
    return found


@pytest.mark.parametrize(("starts", "first"), [("<bos>", 1), ("<eos>", 2), ("", 1)])
def test_the_file_says_how_a_text_begins_and_ends(tmp_path, starts, first):
    facts, _ = read(written(tmp_path / "out", TOKENIZERS["byte"](), starts, "chatml")[1])
    said = [facts[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding", "unknown")]
    assert said == [first, 2, 0, 3] and facts["tokenizer.ggml.add_bos_token"] == bool(starts)
    assert facts["tokenizer.ggml.tokens"][:6] == ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]
    assert facts["tokenizer.ggml.token_type"][5:7] == [library.TokenType.CONTROL, library.TokenType.NORMAL]
    assert "<user>" in facts["tokenizer.chat_template"] and "\ufdd0" not in facts["tokenizer.chat_template"]


REFUSED = {
    "relu2": (
        MODERN | {"activation": "relu2"},
        "llama.cpp has no ReLU² with QK-norm .* train with --activation swiglu",
    ),
    "biases": (LLAMA | {"activation": "relu2"}, "no biases with ReLU²: train with --no-bias"),
    "relu": ({"activation": "relu"}, "--activation relu: llama.cpp has GELU alone"),
    "window": (MODERN | {"window": 4}, "--window 4 is no part of .*; --preset gpt2, and the defaults"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused_with_the_flags_that_go(tmp_path, case):
    options, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        written(tmp_path / "out", TOKENIZERS["char"](), **options)
    assert not (tmp_path / "out").exists()


def test_the_command_and_what_it_refuses(cli, names):
    lines = {"data": names, "kind": "lines"}
    ok(cli("train.py", *quick("transformer", **lines)))
    done = ok(cli("-m export", "run", "--to", "gguf", "out"))
    assert "wrote out/model.gguf, which llama.cpp runs as a qwen3" in done.out and Path("out/model.gguf").stat().st_size
    ok(cli("train.py", *quick("gru", out="other", **lines)))
    refused(cli("-m export", "other", "--to", "gguf", "two"), "other is a gru: llama.cpp has Transformers alone")
    ok(cli("train.py", *quick("transformer", out="mixed", mix_ngram=2, **lines)))
    refused(cli("-m export", "mixed", "--to", "gguf", "two"), "mixes with counts", "which --to gguf has not")


@needs_modules("node-llama-cpp")
@torch.no_grad()
def test_llama_cpp_writes_200_tokens_as_we_do(tmp_path):
    """After each of our greedy tokens its likeliest one is ours, where two are not as good as equal: it rounds parts of
    its computation to 11 bits."""
    jobs, ours = [], []
    cases = [(layout, "char") for layout in LAYOUTS] + [("qwen3", name) for name in TOKENIZERS if name != "char"]
    for n, (layout, name) in enumerate(cases):
        tokenizer, text = vocabulary_of(name)[0], PROSE + HARD
        options = LAYOUTS[layout][0] | {"n_embd": 32, "context": 256}
        model, path, _ = written(tmp_path / str(n), tokenizer, "<bos>", **options)
        tokens = [tokenizer.special.bos, *tokenizer.encode(text)[:39].tolist()]
        for _ in range(200):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        jobs.append({"path": str(path), "text": text, "tokens": tokens})
        ours.append((tokenizer.encode(text).tolist(), model(torch.tensor([tokens])).logits[0].topk(2)))
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = ["node", ROOT / "tests/llama_cpp.mjs", MODULES, tmp_path / "jobs.json", tmp_path / "results.json"]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads((tmp_path / "results.json").read_text())
    for case, (ids, best), theirs in zip(cases, ours, results, strict=True):
        assert theirs["ids"] == ids, case
        clear = best.values[:, 0] - best.values[:, 1] > TIE
        assert clear.sum() > 200 and torch.equal(torch.tensor(theirs["next"])[clear], best.indices[clear, 0]), case
