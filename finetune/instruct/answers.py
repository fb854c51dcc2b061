"""How well a model answers: exact match without decoding, its own answers, and both by task."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.batches import IGNORE
from data.conversations import Conversation
from data.disk import replace_file
from data.rows import Row, by_length, collate
from data.tokenizers import Special
from engine.evaluate import in_evaluation_mode
from engine.run.generate import generate
from engine.run.sampling import Sampling
from engine.run.writing import until_end
from finetune.instruct.templates import Template
from makemore.base import LanguageModel

ROWS_AT_ONCE = 128
SHOWN = 8  # answers printed at the end of a run
GREEDY = Sampling(temperature=0)


def exactly_right(model: LanguageModel, rows: list[Row], special: Special, device: torch.device) -> np.ndarray:
    """Of which rows every target is the likeliest token, (rows,) bool: exact match of greedy decoding, answer after
    answer, at the price of one reading."""
    found = np.zeros(len(rows), bool)
    with in_evaluation_mode(model):
        for numbers in by_length(rows):
            batch = collate([rows[i] for i in numbers], special.pad).to(device)
            logits = model(batch.tokens).logits
            logits[..., special.never_predicted] = -torch.inf
            right = (logits.argmax(-1) == batch.targets) | (batch.targets == IGNORE)
            found[numbers] = right.all(1).cpu().numpy()
    return found


def answer_all(
    model: LanguageModel,
    conversations: list[Conversation],
    template: Template,
    context: int,
    longest: int | None,
    device: torch.device,
) -> list[str]:
    """The greedy answer to the last question of each conversation, after what came before it. At most `longest` tokens
    (None: what `context` leaves); prompts of one length go together."""
    tokenizer, special = template.tokenizer, template.tokenizer.special
    prompts = [template.prompt(conversation.prompt) for conversation in conversations]
    of_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        of_length[len(prompt)].append(i)
    answers = [""] * len(prompts)
    for length, numbers in sorted(of_length.items()):
        room = min(longest or context, context + 1 - length)
        for start in range(0, len(numbers), ROWS_AT_ONCE):
            some = numbers[start : start + ROWS_AT_ONCE]
            ids = torch.tensor([prompts[i] for i in some], device=device)
            drawn = generate(model, ids, room, GREEDY, special.never_predicted, special.eos, torch.Generator(device))
            for i, row in zip(some, torch.stack(list(drawn), 1).tolist(), strict=True):
                answers[i] = tokenizer.decode(until_end(row, special.eos))
    return answers


def exact(answer: str, wanted: str) -> bool:
    """Whether an answer is the wanted one, white space around it aside."""
    return answer.strip() == wanted.strip()


def by_task(conversations: list[Conversation], right: Iterable[bool]) -> dict[str, Any]:
    """Exact match over the examples, then over each group that is counted apart, and for each task."""
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for conversation, is_right in zip(conversations, right, strict=True):
        hits[conversation.group][conversation.label].append(bool(is_right))
    found = _share(sum(hits[""].values(), []))
    for group, tasks in hits.items():
        part = found if not group else found.setdefault("groups", {}).setdefault(group, _share(sum(tasks.values(), [])))
        if set(tasks) != {""}:
            part["tasks"] = {task: _share(of_task) for task, of_task in tasks.items()}
    return found


def _share(hits: list[bool]) -> dict[str, Any]:
    return {"exact_match": sum(hits) / max(1, len(hits)), "examples": len(hits)}


def table(found: dict[str, Any]) -> str:
    """What `by_task` found, as text: a line for each task, and for all of a group."""
    parts = {"all": found, **found.get("groups", {})}
    width = max(len(name) for part, of in parts.items() for name in (part, *of.get("tasks", ())))
    lines = [f"{'':{width}}  exact match  examples"]
    for part, of in parts.items():
        rows = [*of.get("tasks", {}).items(), (part, of)]
        lines += [f"{name:{width}}  {row['exact_match']:11.3f}  {row['examples']:8,d}" for name, row in rows]
        lines.append("")
    return "\n".join(lines[:-1])


def write_generations(path: Path, conversations: list[Conversation], answers: list[str]) -> None:
    """One JSON line an example: what was said before, the wanted answer, the model's, and whether they are equal."""
    lines = []
    for conversation, answer in zip(conversations, answers, strict=True):
        line: dict[str, Any] = {"task": conversation.label} if conversation.label else {}
        line["messages"] = [{"role": turn.role, "content": turn.whole} for turn in conversation.prompt]
        line |= {"wanted": conversation.answer, "answer": answer, "exact": exact(answer, conversation.answer)}
        lines.append(json.dumps(line) + "\n")
    replace_file(path, "".join(lines).encode())


def shown(conversations: list[Conversation], answers: list[str]) -> str:
    """A few questions from all over the list, each with the model's answer and whether it is the wanted one."""
    lines = []
    for i in range(0, len(answers), -(-len(answers) // SHOWN)):
        question, wanted = (
            " ".join(text.split()) for text in (conversations[i].prompt[-1].whole, conversations[i].answer)
        )
        answer = " ".join(answers[i].split())
        verdict = "right" if exact(answers[i], conversations[i].answer) else f"wanted: {wanted}"
        lines.append(f"  {question}\n    {answer}    [{verdict}]")
    return "\n".join(lines)
