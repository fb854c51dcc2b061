"""The model card of an export: README.md as the Hub shows it, from what the run says of itself."""

from pathlib import Path
from typing import Any

from torch import nn

from data.tokenizers import Tokenizer
from makemore.base import count_parameters

USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
```"""
CHAT = """It answers: `pipeline("text-generation", {folder!r})([{{"role": "user", "content": "..."}}])`.
Answers are the likeliest ones; `top_k=0` draws them. A message is text, also where it spells a special such as
`<user>`; what is given to the tokenizer without the template is not."""
GATED_RELU = """Its activation is ReLU² under the name of a gated ReLU (`"hidden_act": "relu"`), which `transformers`
computes. llama.cpp, mlx-lm and vLLM have SiLU in this class: they refuse the model, or compute something else."""


def facts_of(model: nn.Module, tokenizer: Tokenizer, context: int, data: str) -> dict[str, str | None]:
    """The facts of a card that every model has; `data`: what it was trained on."""
    return {
        "parameters": f"{count_parameters(model):,}",
        "trained on": data,
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,} ids",
        "context": f"{context:,} tokens",
    }


def losses_of(facts: dict[str, Any]) -> dict[str, str | None]:
    """Those of a language model, by what its checkpoint says."""
    return {
        "steps": f"{facts['step']:,}" if facts.get("step") else None,
        "validation loss": _number(facts.get("val_loss"), "nats a token"),
        "bits per character": _number(facts.get("val_bits_per_char"), ""),
    }


def write(
    folder: Path,
    kind: str,
    facts: dict[str, str | None],
    uses: list[str],
    task: str = "text-generation",
    *,
    relu2: bool = False,
    library: str = "transformers",
) -> None:
    """Write README.md: what the model is, its `facts` (None for one that is not known), and `uses`, how to load it with
    `library`. `kind`: the class of `transformers` that it went out as, or what else it is."""
    lines = [
        "---", f"library_name: {library}", f"pipeline_tag: {task}", "license: unknown", "---", "",
        f"# {folder.name}", "", f"A {kind} trained from nothing or fine-tuned with charlm.", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items() if value),
    ]  # fmt: skip
    parts = ["\n".join(lines), *uses, *([GATED_RELU] if relu2 else [])]
    parts.append("The licence follows from that of the text; name it above.")
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def _number(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.4f} {unit}".strip()
