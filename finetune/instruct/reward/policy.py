"""Policy gradients: a model draws answers, and those that are worth more than usual are made likelier.

Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992 (REINFORCE);
Shao et al., "DeepSeekMath", 2024 (GRPO). Each answer is used for one step, so that both are a sum of negative
log-likelihoods with weights: a token's is what its answer is worth beside the others to the same question, less how
much likelier than in the reference it has become.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from data.batches import IGNORE
from data.tokenizers import Tokenizer
from engine.evaluate import in_evaluation_mode
from engine.run.generate import generate
from engine.run.sampling import Sampling
from engine.run.writing import until_end
from finetune.instruct.reference import BesideReference
from finetune.instruct.reward.scorer import Answer, Scorer
from makemore.base import LanguageModel, Output, State

EVALUATION_SEED = 0
SPREAD = 1e-4  # added to the standard deviation of a group's rewards, which may be 0
Questions = Mapping[tuple[int, ...], tuple[str, str]]  # what is asked and wanted, by the tokens of a prompt


class Settings(NamedTuple):
    """How a policy learns."""

    samples: int  # answers to each question in a step
    longest: int  # tokens of an answer
    context: int | None  # that of the model
    advantage: str  # 'grpo', 'baseline' or 'none'
    kl: float  # how strongly it is held to the reference


class Drawn(NamedTuple):
    """Answers drawn to the questions of a batch, as many to each, one after another."""

    tokens: Tensor  # (N, T), each after its question, padded
    targets: Tensor  # (N, T), the answers' tokens, `<eos>` too; elsewhere IGNORE
    answers: list[Answer]


class Rewarded(BesideReference):
    """tokens, targets (B, T): questions, each up to its one target (see `Template.question`). In training the loss is
    the sum over the questions of the mean over the answers drawn to each; in evaluation the negative reward, and the
    distance from the reference times `kl`, of one answer to each."""

    def __init__(
        self, model: LanguageModel, settings: Settings, scorer: Scorer, tokenizer: Tokenizer, questions: Questions
    ):
        super().__init__(model)
        self.settings, self.scorer, self.tokenizer, self.questions = settings, scorer, tokenizer, questions

    def forward(
        self, tokens: Tensor, targets: Tensor, state: State | None = None, *, want_logits: bool = True
    ) -> Output:
        """No logits; `n_tokens` counts questions."""
        prompts = prompts_of(tokens, targets)
        count = torch.tensor(len(prompts), device=tokens.device)
        if not self.training:
            measured = self.measure(prompts)
            return Output(None, -(measured.rewards - self.settings.kl * measured.distance).sum(), count, {})
        # From the generator of dropout, which each step seeds: a run that goes on draws the same.
        seed = int(torch.randint(2**62, (), device=tokens.device))
        drawn = self.draw(self.model, prompts, self.settings.samples, seed)
        worth = advantages(self.rewards(drawn).view(len(prompts), -1), self.settings.advantage).flatten()
        nll = token_nll(self.model, drawn)  # (N, T)
        weight = worth[:, None].to(nll.dtype)
        if self.settings.kl:
            # The gradient of exp(d) - d - 1, d = log reference - log model: never negative, 0 where both agree.
            with torch.no_grad():
                apart = nll - token_nll(self.reference, drawn)
                weight = weight - self.settings.kl * (1 - apart.exp())
        return Output(None, (nll * weight.detach()).sum() / self.settings.samples, count, {})

    def draw(self, model: LanguageModel, prompts: list[list[int]], samples: int, seed: int) -> Drawn:
        """`samples` answers of the model, or of the reference, to each prompt, without dropout."""
        special, device = self.tokenizer.special, next(model.parameters()).device
        room = self.settings.longest
        of_length: dict[int, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            of_length[len(prompt)].append(i)
        drawn: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
        generator = torch.Generator(device).manual_seed(seed)
        with in_evaluation_mode(model):
            for length, numbers in sorted(of_length.items()):
                ids = torch.tensor([prompts[i] for i in numbers], device=device)
                if self.settings.context is not None:
                    room = min(self.settings.longest, self.settings.context + 1 - length)
                steps = generate(
                    model, ids, room, Sampling(), special.never_predicted, special.eos, generator,
                    copies=[samples] * len(numbers),
                )  # fmt: skip
                rows = torch.stack(list(steps), 1).tolist()
                for n, row in enumerate(rows):
                    drawn[numbers[n // samples] * samples + n % samples] = row
        return self._padded([prompts[i // samples] for i in range(len(drawn))], drawn, device)

    def _padded(self, prompts: list[list[int]], drawn: list[list[int]], device: torch.device) -> Drawn:
        """The rows that teach `drawn` after `prompts`."""
        eos, answers, rows, wanted = self.tokenizer.special.eos, [], [], []
        for prompt, row in zip(prompts, drawn, strict=True):
            answer = until_end(row, eos)
            said = answer + [eos] * (len(answer) < len(row))
            rows.append((prompt + said)[:-1])
            wanted.append([IGNORE] * (len(prompt) - 1) + said)
            answers.append(Answer(self.tokenizer.decode(answer), *self.questions[tuple(prompt)]))
        T = max(map(len, rows))
        tokens = [row + [self.tokenizer.special.pad] * (T - len(row)) for row in rows]
        targets = [row + [IGNORE] * (T - len(row)) for row in wanted]
        return Drawn(torch.tensor(tokens, device=device), torch.tensor(targets, device=device), answers)

    def rewards(self, drawn: Drawn) -> Tensor:
        """The reward of each answer, (N,) float32."""
        return torch.tensor(self.scorer.scores(drawn.answers), device=drawn.tokens.device)

    def measure(self, prompts: list[list[int]], before: bool = False) -> "Measured":
        """One answer to each prompt, always with the same random numbers; with `before`, as the reference answers."""
        model = self.reference if before else self.model
        with in_evaluation_mode(model):
            drawn = self.draw(model, prompts, 1, EVALUATION_SEED)
            distance = (token_nll(self.reference, drawn) - token_nll(model, drawn)).sum(1)
        return Measured(drawn.answers, self.rewards(drawn), distance.float())


class Measured(NamedTuple):
    """Answers, one to each question: the reward (N,) and the distance from the reference (N,), in nats, an estimate of
    the divergence of Kullback and Leibler by the answer itself."""

    answers: list[Answer]
    rewards: Tensor
    distance: Tensor

    @property
    def facts(self) -> dict[str, float]:
        """The means, and the share of answers that are distinct."""
        distinct = len({(answer.prompt, answer.text) for answer in self.answers}) / len(self.answers)
        return {"reward": float(self.rewards.mean()), "distinct": distinct, "kl": float(self.distance.mean())}


def advantages(rewards: Tensor, kind: str) -> Tensor:
    """What each answer (B, S) is worth beside the others to its question: 'grpo', less the mean, over the standard
    deviation; 'baseline', less the mean of the others; 'none', the reward itself."""
    if kind == "none":
        return rewards
    mean, S = rewards.mean(1, keepdim=True), rewards.shape[1]
    if kind == "baseline":
        return (rewards - mean) * S / max(S - 1, 1)
    return (rewards - mean) / (rewards.std(1, correction=0, keepdim=True) + SPREAD)


def token_nll(model: LanguageModel, drawn: Drawn) -> Tensor:
    """The negative log-likelihood of each target in nats, (N, T), 0 where there is none."""
    hidden, _ = model.hidden(drawn.tokens, None, drawn.targets != IGNORE)
    return model.nll(hidden, drawn.targets, reduction="none")


def prompts_of(tokens: Tensor, targets: Tensor) -> list[list[int]]:
    """The questions of a batch of such rows."""
    lengths = (targets != IGNORE).int().argmax(1) + 1
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
