"""Measuring a model that answers: loss, exact match and its answers; `--eval-only`."""

from pathlib import Path
from typing import Any

import torch

from data.conversations import Pair
from data.errors import UserError
from data.rows import eval_rows
from engine.config import flags
from engine.config.settings import replace
from engine.evaluate import evaluate, in_evaluation_mode
from engine.run import folder
from engine.run.load import load_run
from engine.run.weights import load_weights
from finetune.instruct import preference
from finetune.instruct.answers import answer_all, by_task, exact, write_generations
from finetune.instruct.material import Side, encode, own_material, read_all
from finetune.instruct.options import NO_QUESTIONS, USE_FLAGS, InstructConfig
from finetune.instruct.preference import Preference
from finetune.instruct.templates import Template
from finetune.task import backends_of, refuse_useless_here


def evaluate_side(
    model: Any, side: Side, template: Template, config: InstructConfig, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """What is measured on a side, and the model's answers, one an example. `model` is a language model, or a Preference
    for pairs."""
    special, characters = template.tokenizer.special, template.tokenizer.characters()
    found: dict[str, Any] = {
        "loss": evaluate(model, eval_rows(side.rows, special.pad), characters, device).loss,
        "left_out": side.left_out,
        "shortened": side.shortened,
    }
    speaker = model
    if isinstance(model, Preference):
        found |= preference.measure(model, side.rows, special.pad, device)
        speaker = model.model
    with in_evaluation_mode(speaker):
        answers = answer_all(speaker, side.conversations, template, config.net.context, config.text.max_answer, device)
    wanted = [conversation.answer for conversation in side.conversations]
    return found | by_task(side.conversations, map(exact, answers, wanted)), answers


def evaluate_run(config: InstructConfig, explicit: set[str]) -> dict[str, Any]:
    """What `--eval-only` says: of the run's own test examples, or of all of the given data."""
    refuse_useless_here(explicit, USE_FLAGS | {"out"})
    path, which = config.run.path, config.run.checkpoint or "best"
    generations = None if config.run.generations is None else Path(config.run.generations)
    if generations is not None and (generations.is_dir() or not generations.parent.is_dir()):
        raise UserError(f"cannot write --generations {generations}: name a file in a folder that is there")
    run = load_run(path, which, config.machine.device, **backends_of(config, explicit))
    own, template = flags.config_of(path, InstructConfig), Template(run.template or "chatml", run.tokenizer)
    own = replace(own, grpo=False)  # answers are compared with the wanted ones
    if "data" not in explicit and own.text.data == NO_QUESTIONS:
        raise UserError(f"{path} was trained without questions: there are no answers to compare; see its summary.json")
    if "data" in explicit:
        name, items = read_all(config)
    else:
        material = own_material(own, folder.read_facts(path))
        name, items = material.name, material.sides["test"]
    side = encode(items, template, own, "test")
    model: Any = run.model
    if isinstance(items[0], Pair):
        load_weights(model, path / "base")
        model = Preference(model, own.tuning.dpo_beta).to(run.device)
        load_weights(model, path / which)
    found, answers = evaluate_side(model, side, template, own, run.device)
    if generations:
        try:
            write_generations(generations, side.conversations, answers)
        except OSError as error:
            raise UserError(f"cannot write --generations {generations}: {error.strerror}") from error
    return {"data": name, **found}
