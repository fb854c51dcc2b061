"""The instruction task: from conversations to a model that answers, and its report."""

from typing import Any

import torch

from data.terminal import show
from data.tokenizers import Tokenizer
from engine.config.settings import replace
from engine.registry import build_model
from engine.run import results
from engine.run.folder import sample_command
from engine.run.load import Run
from engine.run.weights import load_best
from engine.task import Session
from engine.training.extend import load_extended, train_tables
from engine.training.lora import add_lora
from engine.training.progress import Progress
from finetune.instruct import evaluation
from finetune.instruct.answers import exactly_right, shown, table, write_generations
from finetune.instruct.material import InstructData, Material, both, encode_sides, own_material, read_material
from finetune.instruct.options import InstructConfig
from finetune.instruct.templates import Template
from finetune.task import FineTuning, tokenizer_for
from makemore.base import LanguageModel, count_parameters

LONGEST = 512  # tokens of a conversation unless --context says otherwise
MEASURED = 1000  # validation examples whose exact match is measured at each evaluation


class Instructions(FineTuning):
    """Its data is an `InstructData`."""

    def read(
        self, config: InstructConfig, explicit: set[str], parent: Run | None
    ) -> tuple[InstructConfig, InstructData]:
        material = read_material(config)
        name = config.text.template or (parent.template if parent else None) or "chatml"
        config, tokenizer = tokenizer_for(config, explicit, material.texts("train", name), parent)
        template, model = Template(name, tokenizer), parent.model if parent else None
        config = replace(config, template=name, context=_context(config, explicit, material, template, model))
        return config, encode_sides(material, template, config)

    def read_again(
        self, config: InstructConfig, explicit: set[str], facts: dict[str, Any], tokenizer: Tokenizer
    ) -> InstructData:
        return encode_sides(own_material(config, facts), Template(config.text.template or "chatml", tokenizer), config)

    def build(self, config: InstructConfig, data: InstructData, parent: Run | None = None) -> LanguageModel:
        model = build_model(config, data.tokenizer.vocab_size, data.tokenizer.special)
        if parent:
            load_extended(model, parent.model)
            tell_markers_apart(model)
        if config.tuning.train == "lora":
            add_lora(model, config.tuning.lora_rank, config.tuning.lora_alpha, config.tuning.lora_layers)
        if config.run.extend_vocabulary:
            train_tables(model)
        return model

    def facts(self, config: InstructConfig, data: InstructData) -> dict[str, Any]:
        return {"template": config.text.template}

    def extra_metrics(self, session: Session) -> dict[str, float]:
        side = session.data.sides["val"]
        few = slice(None, None, -(-len(side.rows) // MEASURED))
        right = exactly_right(session.model, side.rows[few], session.tokenizer.special, session.device)
        return {"val_exact_match": float((right & side.answerable[few]).mean())}

    def finish(self, session: Session, progress: Progress) -> None:
        path, sides = session.folder, session.data.sides
        load_best(session.model, path, progress.best_step)
        summary = results.describe(session.config.model, count_parameters(session.model), progress)
        summary |= results.of_memory(session.device)
        summary["left_out"] = {name: side.left_out for name, side in sides.items()}
        summary["shortened"] = {name: side.shortened for name, side in sides.items()}
        summary["test"], answers = evaluation.evaluate_side(
            session.model, sides["test"], session.data.template, session.config, session.device
        )
        conversations = sides["test"].conversations
        write_generations(path / "generations.jsonl", conversations, answers)
        results.draw_loss(session.metrics, path)
        results.write_summary(path, summary)
        show(f"\n{shown(conversations, answers)}\n\n{table(summary['test'])}\n")
        print(
            f"val loss {summary['val_loss']:.4f} at step {summary['best_step']}, test loss "
            f"{summary['test']['loss']:.4f}; {summary['seconds']:.1f} s of training\n"
            f"all test answers: {path / 'generations.jsonl'}\n"
            f"talk to it: {sample_command(path)} --chat"
        )

    def evaluate(self, config: InstructConfig, explicit: set[str]) -> dict[str, Any]:
        return evaluation.evaluate_run(config, explicit)


@torch.no_grad()
def tell_markers_apart(model: LanguageModel) -> None:
    """Give `<user>` and `<assistant>` rows of their own in the embedding table where they have none yet: in GPT-2's
    both are the mean row, and adapters alone could never tell them apart."""
    embedding, markers = getattr(model, "wte", None), [model.special.user, model.special.assistant]
    if embedding is not None and torch.equal(*embedding.weight[markers]):
        spread = embedding.weight - embedding.weight.mean(0)
        embedding.weight[markers] += spread.std() * torch.randn(2, embedding.weight.shape[1])


def _context(
    config: InstructConfig, explicit: set[str], material: Material, template: Template, parent: LanguageModel | None
) -> int:
    """The model's where it has one, else what was asked for, else that of the longest example."""
    if parent is not None and parent.context is not None:
        return parent.context
    if config.net.context is not None and (parent is None or "context" in explicit):
        return config.net.context
    items = (item for side in material.sides.values() for item in side)
    return min(LONGEST, max(len(template.row(c.turns).tokens) for item in items for c in both(item)))
