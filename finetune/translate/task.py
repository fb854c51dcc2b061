"""The translation task: from pairs of texts to an encoder and a decoder, and their report."""

import shlex
from typing import Any

from data.program import command
from data.rows import eval_rows
from data.terminal import show
from data.tokenizers import Tokenizer
from engine.config.checks import refuse_contradictions
from engine.config.settings import replace, shape, stored
from engine.evaluate import evaluate
from engine.run import results
from engine.run.weights import load_best
from engine.task import Session
from engine.training.extend import check_extendable, load_extended
from engine.training.progress import Progress
from finetune.task import FineTuning, refuse_edited, tokenizer_for
from finetune.translate import report, translator
from finetune.translate.build import build_translator
from finetune.translate.decoding import translate_all
from finetune.translate.material import TranslateData, encode_sides, longest, read_material
from finetune.translate.options import TranslateConfig
from finetune.translate.scores import scores
from makemore.base import LanguageModel, count_parameters

MEASURED = 200  # validation pairs that are translated at each evaluation


class Translation(FineTuning):
    """Its data is a `TranslateData`, and its parent a `Translator`."""

    def parent(self, config: Any, explicit: set[str]) -> Any:
        parent = translator.load_translator(config.run.init, config.run.checkpoint or "best", "cpu")
        unbounded = {"context"} if parent.model.context is None else set()  # how much of a text is read is free then
        kept = stored(parent.config)
        refuse_contradictions(config, explicit & shape(TranslateConfig) - unbounded, kept, set(), "--init")
        check_extendable(config, parent.tokenizer)
        return parent

    def read(self, config: TranslateConfig, explicit: set[str], parent: Any) -> tuple[TranslateConfig, TranslateData]:
        material = read_material(config)
        config, tokenizer = tokenizer_for(config, explicit, material.texts("train"), parent)
        is_free = parent is not None and parent.model.context is None and "context" not in explicit
        asked = None if is_free else config.net.context
        config = replace(config, context=asked or longest(material, tokenizer))
        return config, encode_sides(material, tokenizer, config)

    def read_again(
        self, config: TranslateConfig, explicit: set[str], facts: dict[str, Any], tokenizer: Tokenizer
    ) -> TranslateData:
        material = read_material(config)
        refuse_edited(config, material.key, facts, "start a new run")
        return encode_sides(material, tokenizer, config)

    def build(self, config: TranslateConfig, data: TranslateData, parent: Any = None) -> LanguageModel:
        model = build_translator(config, data.tokenizer)
        if parent is not None:
            load_extended(model, parent.model)
        return model

    def facts(self, config: TranslateConfig, data: TranslateData) -> dict[str, Any]:
        return {"needs_source": True}

    def extra_metrics(self, session: Session) -> dict[str, float]:
        """Of greedy translations of some of the validation pairs."""
        pairs = session.data.sides["val"]
        some = pairs[:: -(-len(pairs) // MEASURED)]
        answers = _translated(session, [pair.text for pair in some], 1)
        found = scores(answers, [pair.target for pair in some])
        return {f"val_{name}": float(found[name]) for name in ("exact_match", "character_error_rate", "chrf")}

    def finish(self, session: Session, progress: Progress) -> None:
        path, pairs, rows = session.folder, session.data.sides["test"], session.data.rows["test"]
        load_best(session.model, path, progress.best_step)
        summary = results.describe(session.config.model, count_parameters(session.model), progress)
        summary |= results.of_memory(session.device)
        answers = _translated(session, [pair.text for pair in pairs], session.config.tuning.beams)
        characters = session.tokenizer.characters()
        batches = eval_rows(rows, session.tokenizer.special.pad)
        summary["test"] = {
            "loss": evaluate(session.model, batches, characters, session.device).loss,
            "beams": session.config.tuning.beams,
            **report.scores_by_group(pairs, answers),
        }
        report.write_translations(path / "generations.jsonl", pairs, answers)
        results.draw_loss(session.metrics, path)
        results.write_summary(path, summary)
        show(f"\n{report.shown(pairs, answers)}\n\n{report.table(summary['test'])}\n")
        print(
            f"val loss {summary['val_loss']:.4f} at step {summary['best_step']}, test loss "
            f"{summary['test']['loss']:.4f}; {summary['seconds']:.1f} s of training\n"
            f"all test translations: {path / 'generations.jsonl'}\n"
            f"translate: {command(TranslateConfig.program)} --out {shlex.quote(str(path))} --translate 'a text'"
        )

    def evaluate(self, config: TranslateConfig, explicit: set[str]) -> dict[str, Any]:
        return translator.evaluate_run(config, explicit)


def _translated(session: Session, texts: list[str], beams: int) -> list[str]:
    context = session.config.net.context
    return translate_all(session.model, texts, session.tokenizer, context, beams, session.device)
