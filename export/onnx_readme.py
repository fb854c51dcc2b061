"""The README of a folder with an ONNX graph: what stands beside it, inputs and outputs, and programs that call it."""

from typing import Any

from export.onnx import CONTEXT_NODE, Ports

FILES = """`model.onnx` is the graph, `tokenizer.json` the tokenizer as the `tokenizers` libraries of Python and
JavaScript read it, and `config.json` what is said here, for programs."""
SPECIALS = "No text is ever read as a special, also where it spells one: a program puts them in by their ids."
STATE = """All of the state is zeros before the first token, and `past` is 0. After each call the outputs after
`logits`, in their order, are the state that goes into the next one: each token is read once, any number of them in a
call. The rows of a batch are texts of equal length."""
PAST = """**Past the context** of {context:,} tokens, those read before included, onnxruntime raises an error that names
the node `{node}` (on a CPU: other devices may compute something wrong). Begin anew there with the last tokens, say half
a context of them."""
REACH = """It has no state: give it the text so far at each call, of which the last {reach} tokens are enough, since the
logits depend on no others."""
LABELLED = """`tokens` are the ids of texts, padded on the right with {pad}, and `lengths` how many of each row are the
text's, at least 1. A text has the same logits alone and in a batch. `labels` in `config.json`, and in the graph's
metadata, are the classes in the order of the logits; {probabilities} Texts are cut at
{context:,} tokens, as in training; `tokenizers` in Python does so by itself."""
ONE = "the softmax of these is their probabilities."
SEVERAL = """the sigmoid of each is its probability. A text has those labels,
or none, that are at least as probable as their `thresholds`."""
CHATS = {
    "chatml": "`[<bos>, <user>, *ids of the message, <assistant>]`",
    "alpaca": "`[<bos>, <user>, *ids of '### Instruction:\\n' + the message + '\\n\\n### Response:\\n', <assistant>]`",
    "plain": "`[<bos>, *ids of the message]`",
}

OPEN = """```python
# pip install onnxruntime tokenizers
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

config = json.load(open("config.json", encoding="utf-8"))
tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx")
"""
GREEDY = """    logits[0, -1, config["suppressed"]] = -np.inf
    token = int(logits[0, -1].argmax())  # the likeliest; or draw one from the softmax
    if token == config["specials"]["<eos>"]:
        break
"""
WITH_STATE = (
    OPEN
    + """prompt, length = "", 100
sizes = {"batch": 1, "past": 0}
state = {
    each["name"]: np.zeros([sizes.get(size, size) for size in each["shape"]], each["type"])
    for each in config["inputs"][1:]
}

ids = tokenizer.encode(prompt).ids or config["start"]
written, new = [], ids
for _ in range(min(length, (config["context"] or len(ids) + length) + 1 - len(ids))):
    logits, *after = session.run(None, {"tokens": np.array([new], np.int64), **state})
    state = dict(zip(state, after))
"""
    + GREEDY
    + """    new = [token]
    written.append(token)
print(prompt + tokenizer.decode(written))
```"""
)
WITHOUT_STATE = (
    OPEN
    + """prompt, length = "", 100

ids = tokenizer.encode(prompt).ids or config["start"]
written = []
for _ in range(length):
    tokens = np.array([(ids + written)[-config["reach"] :]], np.int64)  # more would change nothing
    (logits,) = session.run(None, {"tokens": tokens})
"""
    + GREEDY
    + """    written.append(token)
print(prompt + tokenizer.decode(written))
```"""
)
LABELS = (
    OPEN
    + """texts = ["a text", "another one"]

rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]  # cut at the context
tokens = np.full((len(rows), max(map(len, rows))), config["specials"]["<pad>"], np.int64)
for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids
lengths = np.array([len(ids) for ids in rows], np.int64)
(logits,) = session.run(None, {"tokens": tokens, "lengths": lengths})
if "thresholds" in config:  # several labels a text
    probabilities = 1 / (1 + np.exp(-logits))
else:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
for p in probabilities:
    print({label: round(float(q), 6) for label, q in zip(config["labels"], p)})
```"""
)

OPEN_JS = """```js
// npm install onnxruntime-node @huggingface/tokenizers; in a browser onnxruntime-web, and fetch for the files
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import { Tokenizer } from "@huggingface/tokenizers";

const json = async (name) => JSON.parse(await readFile(name, "utf-8"));
const config = await json("config.json");
const tokenizer = new Tokenizer(await json("tokenizer.json"), {});
const session = await ort.InferenceSession.create("model.onnx");
const int64 = (numbers, shape) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
"""
WITH_STATE_JS = (
    OPEN_JS
    + """const prompt = "", length = 100;
const state = {};
for (const { name, type, shape } of config.inputs.slice(1)) {
  const sizes = shape.map((size) => ({ batch: 1, past: 0 })[size] ?? size);
  const n = sizes.reduce((a, b) => a * b, 1);
  state[name] = new ort.Tensor(type, type === "int64" ? new BigInt64Array(n) : new Float32Array(n), sizes);
}

let ids = tokenizer.encode(prompt).ids;
if (!ids.length) ids = config.start;
const written = [];
let next = ids;
while (written.length < length && ids.length + written.length <= (config.context ?? Infinity)) {
  const results = await session.run({ tokens: int64(next, [1, next.length]), ...state });
  config.inputs.slice(1).forEach(({ name }, i) => (state[name] = results[config.outputs[i + 1].name]));
  const logits = results.logits.data.slice(-config.vocab_size);
  for (const id of config.suppressed) logits[id] = -Infinity;
  const token = logits.indexOf(Math.max(...logits));
  if (token === config.specials["<eos>"]) break;
  written.push(token);
  next = [token];
}
console.log(prompt + tokenizer.decode(written));
```"""
)
WITHOUT_STATE_JS = (
    OPEN_JS
    + """const prompt = "", length = 100;

let ids = tokenizer.encode(prompt).ids;
if (!ids.length) ids = config.start;
const written = [];
while (written.length < length) {
  const some = [...ids, ...written].slice(-config.reach); // more would change nothing
  const results = await session.run({ tokens: int64(some, [1, some.length]) });
  const logits = results.logits.data.slice(-config.vocab_size);
  for (const id of config.suppressed) logits[id] = -Infinity;
  const token = logits.indexOf(Math.max(...logits));
  if (token === config.specials["<eos>"]) break;
  written.push(token);
}
console.log(prompt + tokenizer.decode(written));
```"""
)
LABELS_JS = (
    OPEN_JS
    + """const text = "a text";

const ids = tokenizer.encode(text).ids.slice(0, config.context);
const { logits } = await session.run({ tokens: int64(ids, [1, ids.length]), lengths: int64([ids.length], [1]) });
const odds = Array.from(logits.data, Math.exp);
const total = odds.reduce((a, b) => a + b);
const probabilities = odds.map((o) => ("thresholds" in config ? o / (1 + o) : o / total));
console.log(Object.fromEntries(config.labels.map((label, i) => [label, probabilities[i]])));
```"""
)


def of_a_model(config: dict[str, Any], ports: Ports, starts: str, template: str | None) -> list[str]:
    """The parts of the README of a language model. `starts`: the special that a text begins with, or ''; `template`:
    that of its conversations."""
    has_state, context = len(ports.inputs) > 1, config["context"]
    begins = f"`tokenizer.json` puts `{starts}` before a text. " if starts else ""
    said = [FILES, _table(ports), "Logits are those of the token after each."]
    said += [STATE] if has_state else [REACH.format(reach=config["reach"])]
    if context is not None:
        said.append(PAST.format(context=context, node=CONTEXT_NODE.format(context)))
    said.append(
        f"{_specials(config)} {begins}An empty prompt is {config['start']}. Never draw one of {config['suppressed']}: "
        "they stand for no text."
    )
    if template is not None:
        said.append(f"It answers: a prompt is {CHATS[template]}, the ids without `<bos>`, and `<eos>` ends the answer.")
    return said + ([WITH_STATE, WITH_STATE_JS] if has_state else [WITHOUT_STATE, WITHOUT_STATE_JS])


def of_a_classifier(config: dict[str, Any], ports: Ports) -> list[str]:
    """The parts of the README of one that labels texts."""
    return [
        FILES,
        _table(ports),
        LABELLED.format(
            context=config["context"],
            pad=config["specials"]["<pad>"],
            probabilities=SEVERAL if "thresholds" in config else ONE,
        ),  # fmt: skip
        _specials(config) + " `tokenizer.json` puts `<bos>` before a text.",
        LABELS,
        LABELS_JS,
    ]


def rows(ports: Ports) -> list[tuple[str, str, str, str]]:
    """For each input and output in or out, its name, type and shape."""
    both = [*(("in", port) for port in ports.inputs), *(("out", port) for port in ports.outputs)]
    return [(way, port["name"], port["type"], f"({', '.join(map(str, port['shape']))})") for way, port in both]


def _table(ports: Ports) -> str:
    lines = [f"| {way} | `{name}` | {type_} | {shape} |" for way, name, type_, shape in rows(ports)]
    return "\n".join(["| | name | type | shape |", "|---|---|---|---|", *lines])


def _specials(config: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}` {id_}" for name, id_ in config["specials"].items())
    return f"The specials are {names}. {SPECIALS}"
