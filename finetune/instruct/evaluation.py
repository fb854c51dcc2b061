"""Measuring a model that answers: loss, exact match and its answers; `--eval-only`."""

import json
from pathlib import Path
from typing import Any

import torch

from data.conversations import Pair
from data.errors import UserError
from data.rows import eval_rows
from engine import threads
from engine.config import flags
from engine.config.sections import BACKENDS
from engine.evaluate import evaluate
from engine.run import folder
from engine.run.load import load_run
from engine.run.weights import load_weights
from finetune.instruct import preference
from finetune.instruct.answers import answer_all, by_task, exact, write_generations
from finetune.instruct.material import Material, Side, encode, read_all, read_material
from finetune.instruct.options import USE_FLAGS, InstructConfig, check
from finetune.instruct.preference import Preference
from finetune.instruct.templates import Template


def evaluate_side(
    model: torch.nn.Module, side: Side, template: Template, config: InstructConfig, device: torch.device
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
    training = speaker.training
    speaker.eval()
    answers = answer_all(speaker, side.conversations, template, config.context, config.max_answer, device)
    speaker.train(training)
    wanted = [conversation.answer for conversation in side.conversations]
    return found | by_task(side.conversations, map(exact, answers, wanted)), answers


def own_material(config: InstructConfig, facts: dict[str, Any]) -> Material:
    """The examples of the run with these facts. UserError when they are others now."""
    material = read_material(config)
    if material.key != facts["data"]["key"]:
        raise UserError(f"the examples of {config.data} have changed since the run; name some with --data")
    return material


def evaluate_run(config: InstructConfig, given: set[str]) -> int:
    """`--eval-only`: one JSON line on the run's own test examples, or on all of the given data."""
    if useless := sorted(given - USE_FLAGS - {"out"}):
        raise UserError(f"--{useless[0].replace('_', '-')} means nothing here; everything comes from --out")
    path = Path(config.out)
    if config.generations is not None and (
        Path(config.generations).is_dir() or not Path(config.generations).parent.is_dir()
    ):
        raise UserError(f"cannot write --generations {config.generations}: name a file in a folder that is there")
    threads.use(config.threads if "threads" in given else None)
    run = load_run(path, config.checkpoint or "best", config.device, *(getattr(config, name) for name in BACKENDS))
    own, template = flags.config_of(path, InstructConfig, check), Template(run.template, run.tokenizer)
    if "data" in given:
        name, items = read_all(config)
    else:
        material = own_material(own, folder.read_facts(path))
        name, items = material.name, material.sides["test"]
    side = encode(items, template, own, "test")
    model: torch.nn.Module = run.model
    if isinstance(items[0], Pair):
        load_weights(model, path / "base")
        model = Preference(model, own.dpo_beta).to(run.device)
        load_weights(model, path / (config.checkpoint or "best"))
    found, answers = evaluate_side(model, side, template, own, run.device)
    if config.generations:
        try:
            write_generations(Path(config.generations), side.conversations, answers)
        except OSError as error:
            raise UserError(f"cannot write --generations {config.generations}: {error.strerror}") from error
    print(json.dumps({"data": name, **found}))
    return 0
