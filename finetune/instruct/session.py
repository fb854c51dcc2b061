"""What `finetune.instruct` does: from conversations to a model that answers, and going on with a run."""

import dataclasses
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from data.terminal import show
from data.tokenizers import Tokenizer
from engine import session
from engine.config import flags
from engine.registry import build_model
from engine.run import checkpoint, folder, report
from engine.run.identity import identity
from engine.run.weights import keep_frozen, load_best, load_weights
from engine.training.extend import load_extended, train_tables
from engine.training.lora import add_lora
from engine.training.trainer import Trainer
from finetune.instruct import preference
from finetune.instruct.answers import exactly_right, shown, table, write_generations
from finetune.instruct.evaluation import evaluate_side, own_material
from finetune.instruct.material import Material, Side, both, encode_material, read_material
from finetune.instruct.options import InstructConfig
from finetune.instruct.preference import Preference
from finetune.instruct.templates import Template
from finetune.start import begin, tokenizer_for, trainer_of_rows
from makemore.base import LanguageModel

PROGRAM = "-m finetune.instruct"
LONGEST = 512  # tokens of a conversation unless --context says otherwise
JUDGED = 1000  # validation examples whose exact match is measured at each evaluation


@dataclasses.dataclass
class Work:
    """All that a run has in memory."""

    config: InstructConfig
    material: Material
    template: Template
    sides: dict[str, Side]
    model: LanguageModel
    device: torch.device

    @property
    def pad(self) -> int:
        return self.template.tokenizer.special.pad


def start_run(config: InstructConfig, given: set[str]) -> int:
    """A new run, from examples to the report."""
    config, device, start = begin(config, given)
    parent = start and start.model
    material = read_material(config)
    config = dataclasses.replace(config, template=config.template or (start and start.template) or "chatml")
    tokenizer = tokenizer_for(config, material.texts("train", config.template), start)
    template = Template(config.template, tokenizer)
    config = dataclasses.replace(config, context=_context(config, given, material, template, parent))
    sides = encode_material(material, template, config)
    model = build(config, tokenizer, parent)
    work = Work(config, material, template, sides, model, device)
    with create(config, material, tokenizer) as path:
        trainer = _trainer(work, path)
        if config.dpo:
            checkpoint.save(path / "base", {"model": model.state_dict()}, {}, trainer.belongs_to)  # the reference
        else:
            keep_frozen(model, path, trainer.belongs_to)
        return _finish(trainer, work)


def resume_run(config: InstructConfig, given: set[str]) -> int:
    """Go on with the run in `--out`, exactly where its `last/` was saved."""
    with session.going_on(config, given) as (config, path, facts, tokenizer, device):
        material = own_material(config, facts)
        template = Template(config.template, tokenizer)
        sides = encode_material(material, template, config)
        session.check_sizes_to_go_on(lambda: build(config, tokenizer), config, path)
        model = build(config, tokenizer)
        if config.dpo:
            load_weights(model, path / "base")
        work = Work(config, material, template, sides, model, device)
        trainer = _trainer(work, path)
        session.restore(trainer, path, config, given)
        folder.write_facts(path, facts | {"config": flags.stored(config)})
        return _finish(trainer, work)


def build(config: InstructConfig, tokenizer: Tokenizer, parent: LanguageModel | None = None) -> LanguageModel:
    """The model of `config` with the weights of `parent`, and with adapters under `--train lora`."""
    torch.manual_seed(config.seed)
    model = build_model(config, tokenizer.vocab_size, tokenizer.special)
    if parent:
        load_extended(model, parent)
        tell_markers_apart(model)
    if config.train == "lora":
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_layers)
    if config.extend_vocabulary:
        train_tables(model)
    return model


@torch.no_grad()
def tell_markers_apart(model: LanguageModel) -> None:
    """Give `<user>` and `<assistant>` rows of their own in the embedding table where they have none yet: in GPT-2's
    both are the mean row, and adapters alone could never tell them apart."""
    table, markers = getattr(model, "wte", None), [model.special.user, model.special.assistant]
    if table is not None and torch.equal(*table.weight[markers]):
        spread = table.weight - table.weight.mean(0)
        table.weight[markers] += spread.std() * torch.randn(2, table.weight.shape[1])


def create(config: InstructConfig, material: Material, tokenizer: Tokenizer) -> AbstractContextManager[Path]:
    """The run directory, locked, with all that answering needs."""
    data = {"key": material.key, "folder": "", "name": material.name, "start": ""}
    return folder.create(
        config.out, config.overwrite, flags.stored(config), tokenizer, data, instruct={"template": config.template}
    )


def _context(
    config: InstructConfig, given: set[str], material: Material, template: Template, parent: LanguageModel | None
) -> int:
    """The model's where it has one, else what was asked for, else that of the longest example."""
    if parent is not None and parent.context is not None:
        return parent.context
    if config.context is not None and (parent is None or "context" in given):
        return config.context
    items = (item for side in material.sides.values() for item in side)
    return min(LONGEST, max(len(template.row(c.turns).tokens) for item in items for c in both(item)))


def _trainer(work: Work, path: Path) -> Trainer:
    config = work.config
    model = Preference(work.model, config.dpo_beta) if config.dpo else work.model
    rows = {name: side.rows for name, side in work.sides.items()}
    sizes = ", ".join(f"{len(side.items):,} {name}" for name, side in work.sides.items())
    what = f"{work.material.name}: {sizes}, template {config.template}"
    characters = work.template.tokenizer.characters()
    characters = np.zeros_like(characters) if config.dpo else characters  # a preference is no text
    judge = _judge(work, model)
    ours = identity(folder.read_facts(path), work.template.tokenizer)
    return trainer_of_rows(model, rows, work.pad, what, characters, config, path, work.device, judge, ours)


def _judge(work: Work, model: torch.nn.Module) -> Callable[[], dict[str, float]]:
    """What is measured at each evaluation beside the loss."""
    side = work.sides["val"]
    rows, few = side.rows, slice(None, None, -(-len(side.rows) // JUDGED))

    def preferences() -> dict[str, float]:
        found = preference.measure(model, rows, work.pad, work.device)
        return {f"val_{name}": value for name, value in found.items()}

    def exact_match() -> dict[str, float]:
        right = exactly_right(model, rows[few], work.template.tokenizer.special, work.device)
        return {"val_exact_match": float((right & side.answerable[few]).mean())}

    return preferences if work.config.dpo else exact_match


def _finish(trainer: Trainer, work: Work) -> int:
    session.train(trainer, PROGRAM)
    path, side = trainer.folder, work.sides["test"]
    load_best(trainer.model, path, trainer.progress.best_step)
    summary = report.describe(trainer.model, trainer.progress, work.config)
    summary["left_out"] = {name: each.left_out for name, each in work.sides.items()}
    summary["shortened"] = {name: each.shortened for name, each in work.sides.items()}
    summary["test"], answers = evaluate_side(trainer.model, side, work.template, work.config, work.device)
    write_generations(path / "generations.jsonl", side.conversations, answers)
    report.write_summary(path, summary)
    report.draw_loss(trainer.metrics, path)
    show(f"\n{shown(side.conversations, answers)}\n\n{table(summary['test'])}\n")
    print(
        f"val loss {summary['val_loss']:.4f} at step {summary['best_step']}, test loss {summary['test']['loss']:.4f}; "
        f"{summary['seconds']:.1f} s of training\nall test answers: {path / 'generations.jsonl'}\n"
        f"talk to it: python sample.py {shlex.quote(str(path))} --chat"
    )
    return 0
