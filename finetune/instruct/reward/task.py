"""The reward task (`--grpo`): the instruction task without answers to learn, but with a reward for the model's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.disk import replace_file
from data.errors import UserError
from data.rows import RowLoader, eval_rows
from data.terminal import show
from data.tokenizers import Tokenizer
from engine.config.settings import replace
from engine.run import checkpoint, results
from engine.run.folder import sample_command
from engine.run.load import Run
from engine.run.weights import load_best, load_weights
from engine.task import Batches, Session
from engine.training.progress import Progress
from finetune.instruct.answers import SHOWN
from finetune.instruct.material import MOST_ASKED, InstructData, Side
from finetune.instruct.options import NO_QUESTIONS, InstructConfig
from finetune.instruct.reward.picture import draw_reward
from finetune.instruct.reward.policy import Measured, Rewarded, Settings
from finetune.instruct.reward.rewards import is_own
from finetune.instruct.reward.scorer import Scorer
from finetune.instruct.task import LONGEST, Instructions
from makemore.base import LanguageModel, count_parameters


class Rewards(Instructions):
    """The reference, the model as it was, is kept in `base/`."""

    def read(
        self, config: InstructConfig, explicit: set[str], parent: Run | None
    ) -> tuple[InstructConfig, InstructData]:
        assert parent is not None  # the options ask for --init
        if "reward" not in explicit and self.to_say_again(config):
            raise UserError(
                f"--config {config.run.config} asks for {config.tuning.reward}, a function outside of this project: to "
                f"have it called, say so: --reward {config.tuning.reward}"
            )
        if config.text.data != NO_QUESTIONS:
            return super().read(config, explicit, parent)
        if parent.template is not None:
            raise UserError(f"{config.run.init} answers questions: name a file of them with --data, or strings")
        longest = config.text.max_answer or LONGEST
        wanted = replace(config, template="plain", context=config.net.context or longest)
        return super().read(wanted, explicit | {"context"}, parent)

    def read_again(
        self, config: InstructConfig, explicit: set[str], facts: dict[str, Any], tokenizer: Tokenizer
    ) -> InstructData:
        reward = config.tuning.reward
        if "reward" not in explicit and self.to_say_again(config):
            raise UserError(
                f"{config.run.out} learns from {reward}, a function outside of this project: to have it called, "
                f"say so again: --reward {reward}"
            )
        return super().read_again(config, explicit, facts, tokenizer)

    def to_say_again(self, config: InstructConfig) -> set[str]:
        """A run, or a --config, may be a stranger's, and a reward of one's own is code."""
        return {"reward"} if is_own(config.tuning.reward or "") else set()

    def facts(self, config: InstructConfig, data: InstructData) -> dict[str, Any]:
        return {} if config.text.data == NO_QUESTIONS else super().facts(config, data)

    def batches(self, config: Any, data: InstructData, model: Any) -> Batches:
        pad = data.tokenizer.special.pad
        loader = RowLoader(data.rows["train"], config.optim.batch_size, config.run.seed, pad)
        asked = [data.rows["val"][i] for i in _some(data.sides["val"])]
        return Batches(loader, eval_rows(asked, pad), np.zeros(data.tokenizer.vocab_size))  # a reward is no text

    def trained(
        self, config: InstructConfig, data: InstructData, model: LanguageModel, folder: Path | None
    ) -> Rewarded:
        if folder is not None:
            load_weights(model, folder / "base")
        scorer = Scorer(config.tuning.reward or "", config.tuning.reward_seconds)
        scorer.start()
        return Rewarded(model, _settings(config), scorer, data.tokenizer, _questions(data))

    def keep(self, session: Session) -> None:
        checkpoint.save(session.folder / "base", {"model": session.model.state_dict()}, {}, session.identity)

    def extra_metrics(self, session: Session) -> dict[str, float]:
        measured = _measured(session, "val")
        return {f"val_{name}": value for name, value in measured.facts.items()}

    def finish(self, session: Session, progress: Progress) -> None:
        path = session.folder
        load_best(session.model, path, progress.best_step)
        summary = results.describe(session.config.model, count_parameters(session.model), progress)
        summary |= results.of_memory(session.device)
        measured, before = _measured(session, "test"), _measured(session, "test", before=True)
        summary |= {"test": measured.facts, "before": before.facts}
        replace_file(path / "generations.jsonl", "".join(_lines(measured)).encode())
        results.draw_loss(session.metrics, path)
        draw_reward(session.metrics, path)
        results.write_summary(path, summary)
        session.model.scorer.close()
        show(f"\n{_shown(measured)}\n")
        facts = measured.facts
        print(
            f"reward {facts['reward']:.3f} ({before.facts['reward']:.3f} before), {facts['distinct']:.0%} of the "
            f"answers distinct, {facts['kl']:.2f} nats from the start; best at step {summary['best_step']}, "
            f"{summary['seconds']:.1f} s of training\n"
            f"the answers: {path / 'generations.jsonl'}, the way there: {path / 'reward.png'}\n"
            f"more of them: {sample_command(path)}{'' if _is_silent(session) else ' --chat'}"
        )


def _settings(config: InstructConfig) -> Settings:
    tuning = config.tuning
    longest = config.text.max_answer or config.net.context or LONGEST
    return Settings(tuning.samples, longest, config.net.context, tuning.advantage, tuning.kl)


def _questions(data: InstructData) -> dict[tuple[int, ...], tuple[str, str]]:
    """What is asked and wanted, by the tokens of each question."""
    found = {}
    for side in data.sides.values():
        for row, conversation in zip(side.rows, side.conversations, strict=True):
            asked = conversation.prompt[-1].whole if conversation.prompt else ""
            found[tuple(row.tokens.tolist())] = (asked, conversation.answer)
    return found


def _some(side: Side) -> list[int]:
    """Which questions of a side are measured: at most MOST_ASKED, from all over it."""
    return list(range(0, len(side.rows), -(-len(side.rows) // MOST_ASKED)))


def _measured(session: Session, name: str, before: bool = False) -> Measured:
    side = session.data.sides[name]
    return session.model.measure([side.rows[i].tokens.tolist() for i in _some(side)], before)


def _is_silent(session: Session) -> bool:
    return session.config.text.data == NO_QUESTIONS


def _lines(measured: Measured) -> list[str]:
    """One JSON line an answer."""
    lines = []
    for answer, reward in zip(measured.answers, measured.rewards.tolist(), strict=True):
        asked = {"prompt": answer.prompt, "wanted": answer.wanted} if answer.prompt else {}
        lines.append(json.dumps(asked | {"answer": answer.text, "reward": reward}) + "\n")
    return lines


def _shown(measured: Measured) -> str:
    """A few answers from all over the list, each with its reward."""
    step = -(-len(measured.answers) // SHOWN)
    lines = []
    for answer, reward in zip(measured.answers[::step], measured.rewards[::step].tolist(), strict=True):
        asked = f"{' '.join(answer.prompt.split())}  ->  " if answer.prompt else ""
        lines.append(f"  {reward:6.3f}  {asked}{' '.join(answer.text.split())}")
    return "\n".join(lines)
