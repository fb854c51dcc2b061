"""Out as a page: the model in JavaScript computes, reads and writes what it does here; the page in a browser.

`.ci/run` installs node and Chromium; elsewhere the tests that need one are skipped where it is missing."""

import functools
import http.server
import json
import math
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import sync_playwright

from data import bpe
from data.errors import UserError
from data.gpt2 import GPT2Tokenizer, read_merges
from data.tokenizers import AFTER_EOS, ByteTokenizer, CharTokenizer
from engine import load_run
from engine.config.families import FAMILIES as EVERY_FAMILY
from engine.config.settings import replace
from engine.registry import build_model
from engine.run.run import Run
from export import web
from tests.helpers import FAMILIES, LINES, STREAM, configure, ok, refused, trained, trained_any
from tests.matrices import matrix
from tests.test_gpt2 import FILE
from tests.test_site import CHROMIUM, needs_browser

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="no node on the path")
PROSE = "the sea, the sea, the open sea: it's 1849 and the shells sing naïve songs\n"
HARD = "e\u0301 naïve 漢字 👩\u200d👧 <eos><unk>  \r\n\t\x85\u2028\ufeff don't 1849   x \u00a0\u00a0y"
SIZES = {"context": 16, "n_embd": 16, "n_hidden": 12, "n_layer": 2, "n_head": 4, "activation": "tanh", "norm": "layer"}
MODELS = {
    "bigram": {"model": "bigram"},
    "counted bigram": {"model": "bigram", "counts": True},
    "unigram": {"model": "ngram", "order": 1},
    "ngram": {"model": "ngram", "order": 4},
    "mlp": {"model": "mlp", "order": 4, "norm": "batch", "activation": "gelu"},
    "mlp of one": {"model": "mlp", "order": 1, "norm": "none", "activation": "leaky_relu"},
    "mlp with n-grams": {"model": "mlp", "order": 3, "hash_ngrams": 4, "hash_rows": 50, "activation": "gelu_tanh"},
    "cnn": {"model": "cnn", "n_layer": 4},
    "cnn of many layers": {"model": "cnn", "n_layer": 12, "norm": "rms", "n_embd": 4, "hash_ngrams": 2},
    "rnn": {"model": "rnn", "norm": "none"},
    "written rnn": {"model": "rnn", "cells": "written", "activation": "sigmoid"},
    "lstm": {"model": "lstm", "hash_ngrams": 3},
    "gru": {"model": "gru", "norm": "rms"},
    "transformer": {"model": "transformer", "activation": "gelu"},
    "modern": {
        "model": "transformer", "positions": "rope", "norm": "rms", "activation": "swiglu", "n_kv_head": 2,
        "qk_norm": True, "bias": False, "tie_head": False, "logit_cap": 3.0, "attention_cap": 2.0,
        "value_embeddings": True, "value_residual": True,
    },
    "default": {"model": "transformer", "positions": "rope", "activation": "swiglu", "qk_norm": True, "bias": False},
    "context of one": {"model": "transformer", "context": 1},
    "odd context": {"model": "transformer", "context": 5, "norm": "none", "activation": "silu"},
    "alibi": {"model": "transformer", "positions": "alibi", "norm": "batch", "activation": "relu"},
    "alibi in a window": {"model": "transformer", "positions": "alibi", "window": 4, "hash_ngrams": 3, "hash_rows": 9},
    "rope in a window": {"model": "transformer", "positions": "rope", "window": 5, "activation": "relu2"},
    "learned in a window": {"model": "transformer", "window": 3},
    "sinusoidal": {"model": "transformer", "positions": "sinusoidal", "n_embd": 12},
    "sinusoidal in a window": {"model": "transformer", "positions": "sinusoidal", "window": 5},
    "mixture": {"model": "transformer", "positions": "rope", "mix_ngram": 4},
    "mixture of a gru": {"model": "gru", "mix_ngram": 3},
    "mixture of a bigram": {"model": "bigram", "mix_ngram": 2},
}  # fmt: skip
LOAD = """
const fs = require("fs"), read = (name) => fs.readFileSync(`${dir}/${name}`);
const dir = process.argv[2], charlm = require(`${dir}/charlm.js`), given = JSON.parse(read("given.json"));
const bytes = read("model.safetensors"), json = (name) => JSON.parse(read(name));
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
const loaded = () => charlm.load(json("settings.json"), json("tokenizer.json"), buffer);
const text = (pieces) => { let found = ""; for (;;) { const { done, value } = pieces.next();
  if (done) return { text: found, end: value }; found += value; } };
const told = (found) => console.log(JSON.stringify(found));
"""


def node(folder: Path, script: str, **given):
    """What a script says, with the page of `folder` and these values."""
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "script.js").write_text(LOAD + script)
    done = subprocess.run([NODE, folder / "script.js", folder.resolve()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def made(tmp_path, tokenizer=None, kind="lines", start="", **options) -> Run:
    """A run in memory with large random weights."""
    tokenizer = tokenizer or CharTokenizer(PROSE)
    config = replace(configure(**SIZES | options), kind=kind)
    torch.manual_seed(0)
    model = build_model(config, tokenizer.vocab_size, tokenizer.special)
    if hasattr(model, "fit") or hasattr(model, "counts"):
        text = np.random.default_rng(0).integers(6, 14, 2000)
        (model.fit if hasattr(model, "fit") else model.count)(text[:-1], text[1:], np.arange(1999))
    running = {name: buffer for name, buffer in model.named_buffers() if "running" in name}
    for name, weight in [*model.named_parameters(), *running.items()]:
        noise = 0.2 * torch.randn_like(weight)
        weight.data += noise.abs() if name.endswith("running_var") else noise
    return Run(tmp_path / "none", model.eval(), tokenizer, config, start, {"val_loss": 1.0}, torch.device("cpu"))


def logits_of(run: Run, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) after each token, by the plain way."""
    with torch.no_grad():
        return run.model.read(torch.tensor([tokens])).logits[0]


ALL_LOGITS = """
const run = loaded(), { model } = run;
model.reset();
const each = given.tokens.map((token) => Array.from(model.read(token)));
const last = Array.from(run.logits(given.tokens));
model.reset();
told({ each, last, again: Array.from(model.read(given.tokens[0])) });
"""


@needs_node
@pytest.mark.parametrize(
    "name", matrix(MODELS, ["ngram", "gru", "lstm", "default", "odd context", "alibi in a window"])
)
def test_logits_equal_ours_past_the_context_too(tmp_path, name):
    run = made(tmp_path, **MODELS[name])
    web.save(run, tmp_path / "page")
    tokens = torch.randint(6, run.tokenizer.vocab_size, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    ours, theirs = logits_of(run, tokens), node(tmp_path / "page", ALL_LOGITS, tokens=tokens)
    assert (torch.tensor(theirs["each"]) - ours).abs().max() < 1e-4
    assert (torch.tensor(theirs["last"]) - ours[-1]).abs().max() < 1e-4
    assert theirs["again"] == theirs["each"][0]


@needs_node
@pytest.mark.parametrize("kind", matrix(["int8", "int4", "bf16"], ["int4"]))
@pytest.mark.parametrize("family", matrix(FAMILIES, ["ngram", "transformer"]))
def test_a_rounded_run_stays_small_on_the_page(cli, tmp_path, names, family, kind):
    trained_any(cli, family, **LINES)
    ok(cli("-m export", "run", "--to", kind, "small"))
    ok(cli("-m export", "small", "--to", "web", "page"))
    sizes = [(tmp_path / name).stat().st_size for name in ("small/best/model.safetensors", "page/model.safetensors")]
    assert sizes[0] == sizes[1]
    run, tokens = load_run("small"), [1, 7, 8, 9, 10, 11]
    theirs = node(tmp_path / "page", ALL_LOGITS, tokens=tokens)
    assert (torch.tensor(theirs["each"]) - logits_of(run, tokens)).abs().max() < 1e-4


def test_a_setting_is_computed_or_of_training_or_refused(tmp_path, monkeypatch):
    known = {name for family in EVERY_FAMILY.values() for name in family.config.__dataclass_fields__}
    sets = web.COMPUTED, web.OF_TRAINING, web.NOT_COMPUTED
    assert known == set().union(*sets) and len(known) == sum(map(len, sets))
    with pytest.raises(UserError, match="no page computes --count-inputs, which .* was trained with"):
        web.save(made(tmp_path, model="gru", mix_ngram=2, count_inputs=True), tmp_path / "page")
    with pytest.raises(UserError, match="no page computes --objective, which .* was trained with"):
        web.save(made(tmp_path, model="gru", objective="masked"), tmp_path / "page")
    monkeypatch.setattr(web, "COMPUTED", web.COMPUTED - {"window"})
    with pytest.raises(UserError, match="no page computes --window, which .* was trained with"):
        web.save(made(tmp_path, **MODELS["transformer"]), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_what_is_too_large_is_refused_or_only_served(tmp_path, monkeypatch):
    run = made(tmp_path, **MODELS["gru"])
    monkeypatch.setattr(web, "MAX_IN_SCRIPT", 10)
    assert "too large to be opened from a disk" in web.save(run, tmp_path / "page")
    assert not (tmp_path / "page/model.js").exists()
    monkeypatch.setattr(web, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="bytes of weights, and a page holds 10; --to int4"):
        web.save(run, tmp_path / "other")


TOKENIZERS = {
    "char": lambda: CharTokenizer(PROSE + HARD),
    "byte": ByteTokenizer,
    "bpe": lambda: bpe.learn([PROSE, HARD], 300),
    "gpt2": lambda: GPT2Tokenizer(read_merges(FILE)),
}


@needs_node
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_text_equal_ours(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    web.save(made(tmp_path, tokenizer, model="gru", n_embd=2, n_hidden=2, n_layer=1), tmp_path)
    draw, alphabet = np.random.default_rng(0), sorted(set(PROSE + HARD))
    texts = [PROSE, HARD, "", *("".join(draw.choice(alphabet, 30)) for _ in range(40))]
    ids = [draw.integers(0, tokenizer.vocab_size, 40).tolist() for _ in range(40)]
    theirs = node(tmp_path, """
        const { tokenizer } = loaded();
        const decode = (ids) => {
          const decoder = tokenizer.decoder();
          return ids.map((id) => decoder.feed(id)).join("") + decoder.flush();
        };
        told({ encoded: given.texts.map(tokenizer.encode), decoded: given.ids.map(decode) });
    """, texts=texts, ids=ids)  # fmt: skip
    assert theirs["encoded"] == [tokenizer.encode(text).tolist() for text in texts]
    assert theirs["decoded"] == [tokenizer.decode(row) for row in ids]


PROMPTS = ["", "the", "the sea, ", "  ", "sing na", "it's 18"]


@needs_node
@pytest.mark.parametrize(
    ("tokenizer", "kind", "start"),
    [("char", "lines", ""), ("bpe", "stream", PROSE[:4]), ("bpe", "stream", AFTER_EOS), ("byte", "documents", "")],
)
def test_the_likeliest_text_is_ours(tmp_path, tokenizer, kind, start):
    run = made(tmp_path, TOKENIZERS[tokenizer](), kind=kind, start=start, **MODELS["default"])
    web.save(run, tmp_path)
    theirs = node(tmp_path, """
        const run = loaded();
        told(given.prompts.map((prompt) => text(run.generate(prompt, { temperature: 0, max_new: 40 }))));
    """, prompts=PROMPTS)  # fmt: skip
    for prompt, found in zip(PROMPTS, theirs, strict=True):
        (ours,) = run.samples(prompt, temperature=0, max_new_tokens=40)
        assert (prompt + found["text"], found["end"]) == (ours.text, ours.end)


@needs_node
def test_ends_stops_and_seeds(tmp_path):
    run = made(tmp_path, kind="lines", **MODELS["gru"])
    web.save(run, tmp_path)
    found = node(tmp_path, """
        const run = loaded(), write = (options) => text(run.generate("se", { seed: 1, ...options }));
        const all = write({ max_new: 300 });
        const parts = [];
        const stop = all.text.slice(5, 8);
        for (const piece of run.generate("se", { seed: 1, max_new: 300, stop })) parts.push(piece);
        let problem;
        try { run.promptIds("é€"); } catch (error) { problem = error.message; }
        let line;
        try { run.promptIds("a\\nb"); } catch (error) { line = error.message; }
        told({ all, again: write({ max_new: 300 }), other: write({ seed: 2, max_new: 300 }), parts,
          stopped: write({ max_new: 300, stop }), short: write({ max_new: 3 }), problem, line,
          seeds: [0, 2 ** 53 - 1, 2 ** 32].map((seed) => write({ seed, max_new: 50 }).text), default: write({}) });
    """)  # fmt: skip
    text = found["all"]["text"]
    assert found["again"] == found["all"] != found["other"] and len({*found["seeds"]}) == 3
    assert found["stopped"] == {"text": text[: text.index(text[5:8])], "end": "stop"}
    assert "".join(found["parts"]) == found["stopped"]["text"]
    assert found["short"] == {"text": text[:3], "end": "length"} and len(found["default"]["text"]) <= run.longest
    assert found["problem"] == 'the model does not know "é", "€"' and "single lines" in found["line"]


SAMPLINGS = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.3},
    {"top_k": 6, "top_p": 0.8, "temperature": 2},
]


@needs_node
def test_tokens_are_drawn_as_often_as_ours(tmp_path):
    """10,000 draws from fixed logits, against the probabilities that the same settings have here."""
    run, n = made(tmp_path, kind="stream", start="t", model="bigram"), 10_000
    web.save(run, tmp_path)
    logits = (2 * torch.randn(run.tokenizer.vocab_size, generator=torch.Generator().manual_seed(3))).tolist()
    logits[run.tokenizer.special.eos] = 50.0  # a stream has no end: never drawn
    theirs = node(tmp_path, """
        const run = loaded();
        run.model.read = () => Float32Array.from(given.logits);
        told(given.samplings.map((some) => text(run.generate("t", { ...some, seed: 5, max_new: given.n })).text));
    """, logits=logits, samplings=SAMPLINGS, n=n)  # fmt: skip
    for some, text in zip(SAMPLINGS, theirs, strict=True):
        expected = probabilities(torch.tensor(logits).index_fill(0, torch.tensor(run.suppressed), -math.inf), **some)
        drawn = np.bincount(run.tokenizer.encode(text), minlength=len(logits)) / n
        assert len(text) == n and np.abs(drawn - expected.numpy()).max() < 0.02, some
        assert not drawn[(expected == 0).numpy()].any(), some


def probabilities(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """By the definitions, one after the other."""
    ordered, order = (logits / temperature).sort(descending=True)
    p = ordered.softmax(0)
    p = p if top_k is None else p * (torch.arange(len(p)) < top_k) / p[:top_k].sum()
    p = p * (p >= min_p * p.max())
    p = p * (p.cumsum(0) - p < top_p * p.sum())
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


def quarter(content: bytes) -> bytes:
    """A file of which one weight is a quarter or four times what it was."""
    at = len(content) // 8 * 4 + 3  # the highest byte of a number in the middle
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE = {
    "another weight": ("model.safetensors", quarter, "off by"),
    "cut short": ("model.safetensors", lambda content: content[:-8], "is not"),
    "empty": ("model.safetensors", lambda content: b"", "damaged"),
    "other type": ("model.safetensors", lambda content: content.replace(b'"F32"', b'"F16"', 1), "type F16"),
    "other name": (
        "model.safetensors",
        lambda content: content.replace(b"weight_hh_l0", b"weight_xx_l0"),
        "lacks layers",
    ),
    "other family": ("settings.json", lambda content: content.replace(b'"gru"', b'"toString"'), "no model toString"),
    "other format": (
        "settings.json",
        lambda content: content.replace(b'"format": 1', b'"format": 2'),
        "another version",
    ),
    "other norm": ("settings.json", lambda content: content.replace(b'"rms"', b'"l2"'), "no norm l2"),
    "other tokenizer": ("tokenizer.json", lambda content: content.replace(b"char", b"word", 1), "no tokenizer word"),
}


@needs_node
def test_what_computes_something_else_is_not_passed_off(tmp_path):
    web.save(made(tmp_path, **MODELS["gru"]), tmp_path / "page")
    for name, (file, change, words) in DAMAGE.items():
        shutil.copytree(tmp_path / "page", tmp_path / name)
        path = tmp_path / name / file
        path.write_bytes(change(path.read_bytes()))
        script = "let said = ''; try { loaded(); } catch (error) { said = error.message; } told(said);"
        assert words in node(tmp_path / name, script), name


def test_the_command_writes_a_page_of_any_family(cli, tmp_path, names):
    trained(cli, "transformer", **LINES)
    assert "open it, or put the folder on any static host" in ok(cli("-m export", "run", "--to", "web", "page")).out
    files = {path.name: path.read_bytes() for path in (tmp_path / "page").iterdir()}
    assert {*files} == {"index.html", "charlm.js", "settings.json", "tokenizer.json", "model.safetensors", "model.js"}
    settings = json.loads(files["settings.json"])
    assert settings["data"] == "names" and str(tmp_path) not in files["settings.json"].decode()
    assert not re.search(rb"https?://(?!localhost)", files["index.html"] + files["charlm.js"])
    assert len(files["index.html"]) < 30_000
    refused(cli("-m export", "run", "--to", "web", "page"), "page already exists")


@pytest.fixture
def browser():
    """Chromium, which knows no host but this one."""
    rules = "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--host-resolver-rules={rules}"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def served(tmp_path):
    """A static host for `tmp_path`: its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def opened(browser, address: str, problems: list[str], **how):
    """The page at `address`, whose problems are noted."""
    page = browser.new_page(**how)
    page.set_default_timeout(60_000)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda one: problems.append(one.url) if not one.url.startswith(address[: address.rindex("/")]) else None,
    )
    page.goto(address)
    return page


@needs_browser
def test_the_page_writes_in_a_browser_from_a_host_and_from_a_disk(cli, browser, served, tmp_path, names, text):
    trained(cli, "gru", **LINES)
    ok(cli("-m export", "run", "--to", "web", "names"))
    shutil.rmtree("run")
    trained(cli, "transformer", **STREAM)
    ok(cli("-m export", "run", "--to", "web", "prose"))
    problems: list[str] = []
    for address in (f"{served}/names/index.html", f"file://{tmp_path}/names/index.html"):
        page = opened(browser, address, problems, color_scheme="dark")
        page.wait_for_selector("#write:enabled")
        page.keyboard.type("em")  # the field has the focus
        page.keyboard.press("Enter")
        page.wait_for_selector("#halt:disabled")
        assert [row[:2] for row in page.inner_text("#text").split("\n")] == ["em"] * 10
        assert "characters a second" in page.inner_text("#status") and problems == []
        page.fill("#prompt", "é")
        page.click("#write")
        assert page.inner_text("#problem") == 'the model does not know "é"'
        page.close()
    page = opened(browser, f"{served}/prose/index.html", problems, viewport={"width": 390, "height": 700})
    page.wait_for_selector("#write:enabled")
    page.click("summary")
    for field, value in {"#max_new": "100000", "#seed": "1", "#prompt": "emma\n"}.items():
        page.fill(field, value)
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.getElementById('text').textContent.length > 50")
    page.keyboard.press("Escape")
    written = page.text_content("#text")
    page.wait_for_timeout(100)
    assert page.text_content("#text") == written and written.startswith("emma\n") and len(written) < 90_000
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#max_new", "20")
    texts = []
    for _ in range(2):
        page.click("#write")
        page.wait_for_selector("#halt:disabled")
        texts.append(page.text_content("#text"))
    assert texts[0] == texts[1] and len(texts[0]) == 25 and problems == []


@needs_browser
def test_a_page_without_its_files_says_what_is_missing(browser, served, tmp_path):
    web.save(made(tmp_path, **MODELS["gru"]), tmp_path / "page")
    for name in ("model.js", "model.safetensors"):
        (tmp_path / "page" / name).unlink()
    for address, words in (
        (f"{served}/page/index.html", "model.safetensors is not there: put all files"),
        (f"file://{tmp_path}/page/index.html", "python -m http.server"),
    ):
        page = opened(browser, address, [])
        page.wait_for_function("document.getElementById('problem').textContent")
        assert words in page.inner_text("#problem")
