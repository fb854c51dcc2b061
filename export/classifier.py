"""A run of `finetune.classify` for `transformers`: GPT2-, Llama- or Qwen3ForSequenceClassification, with its labels.

These classes take the logits at a text's last token. Other poolings, the bag of n-grams and layers that look ahead have
no counterpart there.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.rows import collate
from engine.config.settings import flat
from engine.run.folder import read_facts, task_of
from engine.run.results import read_summary
from export import card, hub
from export.hub_check import UNCOMPARED, check_equal, reloaded
from finetune.classify.examples import encode
from finetune.classify.labeller import Labeller, load_labeller
from finetune.classify.measure import HEADLINES, headlines
from nanogpt import pretrained
from nanogpt.model import Transformer

USE = """```python
from transformers import pipeline

classify = pipeline("text-classification", {folder!r})
classify("a text", truncation=True, top_k=None)
```"""

SEVERAL = """A text may have several labels, or none: those whose probability is at least their threshold
(`thresholds` in config.json, in the order of `id2label`)."""


def is_classifier(run: str) -> bool:
    """Whether `run`, a run directory or gpt2:PATH, labels texts."""
    if pretrained.folder_of(run) is not None:
        return False
    facts = read_facts(Path(run))
    return "labels" in facts.get(task_of(facts) or "", {})


def to_hub(path: Path, which: str, folder: Path) -> str:
    """Write the classifier `path` and check it in `transformers`; what to tell the user."""
    labeller = load_labeller(path, which, "cpu")
    settings = flat(labeller.config)
    body = labeller.model.body
    _refuse(path, labeller, settings)
    assert isinstance(body, Transformer)
    body.lm_head = None  # of the next token, which is not asked for; nor is its cap
    thresholds = None if labeller.thresholds is None else labeller.thresholds.tolist()
    classes = hub.Classes(labeller.labels, labeller.model.head.weight, thresholds)
    try:
        kind = hub.save(body, labeller.tokenizer, settings | {"logit_cap": None}, folder, "<bos>", classes=classes)
        checked = _check(labeller, folder)
    except BaseException:  # what was not checked is not left behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    summary, relu2 = read_summary(path), kind != "gpt2" and settings["activation"] == "relu2"
    facts = card.facts_of(labeller.model, labeller.tokenizer, settings["context"], read_facts(path)["data"]["name"]) | {
        "labels": ", ".join(labeller.labels),
        **{f"test {HEADLINES[name]}": f"{value:.4f}" for name, value in headlines(summary.get("test", {})).items()},
    }
    uses = [USE.format(folder=folder.name)]
    if thresholds is not None:
        facts["thresholds"] = ", ".join(f"{threshold:.4f}" for threshold in thresholds)
        uses.append(SEVERAL)
    card.write(folder, f"{kind} classifier", facts, uses, "text-classification", relu2=relu2)
    return f"wrote {folder}, a {kind}: pipeline('text-classification', {str(folder)!r}) labels with it\n{checked}"


def _refuse(path: Path, labeller: Labeller, settings: dict[str, Any]) -> None:
    """Raise UserError for a classifier that no class of `transformers` computes."""
    if not isinstance(labeller.model.body, Transformer):
        raise UserError(f"{path} is a {labeller.config.model}: transformers has a class for Transformers alone")
    unlike = {
        f"--ngrams {settings['ngrams']}": labeller.model.bag is not None,
        f"--pooling {labeller.model.pooling}": labeller.model.pooling != "last",
        f"--look-ahead {settings['look_ahead']}": bool(settings["look_ahead"]),
        "--objective masked": settings["objective"] == "masked",
    }
    if wrong := [name for name, is_unlike in unlike.items() if is_unlike]:
        raise UserError(
            f"{wrong[0]} is no part of a classifier of transformers: one goes that was trained with --ngrams 0, "
            "--pooling last and no --look-ahead"
        )


@torch.no_grad()
def _check(labeller: Labeller, folder: Path) -> str:
    """How the folder was checked, in words. Raises RuntimeError where `transformers` computes other logits for two
    texts of different lengths."""
    if importlib.util.find_spec("transformers") is None:
        return UNCOMPARED
    import transformers

    theirs = reloaded(transformers.AutoModelForSequenceClassification, folder)
    tokenizer = labeller.tokenizer
    some = tokenizer.decode(range(min(tokenizer.vocab_size, 200)))
    rows, _, _ = encode([some, some[:3]], tokenizer, labeller.config.net.context or len(some))
    batch = collate(rows, tokenizer.special.pad).to(labeller.device)
    logits = theirs.eval()(batch.tokens, attention_mask=(batch.tokens != tokenizer.special.pad).long()).logits
    check_equal(logits, labeller.model.eval()(batch.tokens, batch.targets).logits, folder)
    return f"checked: its logits in transformers {transformers.__version__} are ours"
