"""A trained Transformer and its tokenizer as a folder of the Hub: files that `transformers` loads with no custom code.

All files are written by hand; nothing here needs `transformers`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from data import gpt2
from data.disk import write_parts
from data.gpt2 import GPT2Tokenizer
from data.tokenizers import Tokenizer
from engine.run.tensor_files import files_of
from export.hub_chat import chat_template
from export.hub_check import check_weights
from export.hub_tokenizer import tokenizer_json
from export.hub_weights import Counterpart, counterpart
from nanogpt.model import Transformer

GPT2_END = "<|endoftext|>"  # what GPT-2 calls its <eos>


class Classes(NamedTuple):
    """What makes a classifier of a Transformer: its labels, the weight of its head, (labels, C), and, where a text may
    have several labels, from which probability on it has each."""

    labels: list[str]
    weight: Tensor
    thresholds: list[float] | None = None


_NAMED = ("bos", "eos", "pad", "unk")


def save(
    model: Transformer, tokenizer: Tokenizer, settings: dict[str, Any], folder: Path, starts: str,
    suppressed: list[int] | None = None, template: str | None = None, classes: Classes | None = None,
) -> str:  # fmt: skip
    """Write the folder; returns what it holds, 'gpt2', 'llama' or 'qwen3'. `settings` are the flags the model was made
    with, `starts` the special that a text begins with, or ''. `suppressed`: the ids that are never drawn (None: all
    specials but `<eos>`); `template`: that of its conversations, for a model that answers; `classes`: for one that
    labels what it reads.

    Raises UserError for what none of the three can be."""
    config, weights = counterpart(model, settings)
    if classes:
        config, weights = _classifier(config, weights, classes)
    specials, table = tokenizer.specials, model.wte.weight
    if isinstance(tokenizer, GPT2Tokenizer) and starts != "<bos>" and are_untouched(table):
        specials, table = {GPT2_END: tokenizer.special.eos}, table[: gpt2.VOCAB_SIZE]
        starts = starts and GPT2_END
        weights = {name: w[: len(table)] if len(w) == model.vocab_size else w for name, w in weights.items()}
    names = {"bos": GPT2_END, "eos": GPT2_END} if GPT2_END in specials else {n: f"<{n}>" for n in _NAMED}
    ids = {f"{name}_token_id": specials[special] for name, special in names.items() if name != "unk"}
    config |= {"vocab_size": len(table), "torch_dtype": "float32", **ids}
    folder.mkdir(parents=True, exist_ok=True)
    never = [id_ for id_ in (suppressed or tokenizer.special.never_predicted) if id_ < len(table)]
    generation = ids | {"do_sample": True, "max_length": settings["context"]}
    # Answers are greedy, as in our chat: a pipeline takes `"do_sample": false` for not said, and samples.
    generation |= {"top_k": 1} if template else {}
    generation |= {"suppress_tokens": never} if never else {}
    chat = {"chat_template": chat_template(template, names["bos"], names["eos"])} if template else {}
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    for file, parts in files_of("model", weights, {"format": "pt"}):
        write_parts(folder / file, parts)
    for name, content in {
        "config.json": config,
        **({} if classes else {"generation_config.json": generation}),
        "tokenizer.json": tokenizer_json(tokenizer, specials, starts, bool(template)),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            # What a user types is text, also where it spells a special. A template's markers have to be found, and
            # keep messages apart by themselves.
            "split_special_tokens": template is None,
            "clean_up_tokenization_spaces": False,
            # transformers 4 has token types besides, which a GPT-2 adds to what it reads.
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": settings["context"],
            **{f"{name}_token": special for name, special in names.items()},
            **chat,
        },
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    check_weights(folder, weights)
    return config["model_type"]


def _classifier(config: dict[str, Any], weights: dict[str, Tensor], classes: Classes) -> Counterpart:
    """The same as a classifier, without the head of the next token."""
    architecture = config["architectures"][0].replace("ForCausalLM", "").replace("LMHeadModel", "")
    labels = {str(n): label for n, label in enumerate(classes.labels)}
    config |= {
        "architectures": [f"{architecture}ForSequenceClassification"], "tie_word_embeddings": False,
        "problem_type": "single_label_classification", "id2label": labels,
        "label2id": {label: n for n, label in enumerate(classes.labels)},
    }  # fmt: skip
    if classes.thresholds is not None:  # transformers keeps the key, and leaves it to who reads the probabilities
        config |= {"problem_type": "multi_label_classification", "thresholds": classes.thresholds}
    kept = {name: weight for name, weight in weights.items() if not name.startswith("lm_head.")}
    return config, kept | {"score.weight": classes.weight}


def are_untouched(table: Tensor) -> bool:
    """Whether the rows appended to GPT-2's table are still what they were made as: all one. A loss in which they are
    never targets moves them alike."""
    rows = table[gpt2.VOCAB_SIZE :]
    return bool((rows == rows[0]).all())
