"""The one training loop, and its state, which a checkpoint stores to resume exactly."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.batches import Batch
from data.end_to_end import end_to_end
from data.errors import UserError
from data.loaders import Loader
from engine import runtime
from engine.config.sections import Config
from engine.distributed.dealing import WholeBatch, dealing_of, share_sums
from engine.distributed.gradients import GradientSum
from engine.distributed.ranks import ALONE, Ranks
from engine.distributed.sharding import Sharded, whole
from engine.evaluate import evaluate_unless
from engine.run.folder import DRAWS_BY_STEP, FORMAT, FUSES
from engine.run.weights import trained_weights
from engine.training.budget import Budget
from engine.training.drawing import draw_from
from engine.training.feed import Feed
from engine.training.graphed import graphed_step
from engine.training.losses import Losses, all_finite, diverged
from engine.training.metrics import Metrics
from engine.training.optimizers import make_optimizers, set_lr
from engine.training.profiling import Profile
from engine.training.progress import Evaluation, Progress
from engine.training.saver import Saver
from engine.training.schedules import lr_factor
from engine.training.state import go_on_from, state_of
from makemore.base import LanguageModel, State, keep_bits
from makemore.layers import sparse_parameters


class Trainer:
    """Trains `model` on the batches of `loader` as `config` says, evaluates, saves into `folder`, and resumes exactly.

    `belongs_to`: the identity of the run, stored in every checkpoint. `extra_metrics` returns further metrics of an
    evaluation, by their names in `metrics.jsonl`. `ranks`: the processes that train it together, of which the first one
    writes. `run_format`: that of the run, which says where dropout comes from. `sharded`: the model to train in place
    of `model`, whose weights and optimizer state are divided among the processes."""

    def __init__(
        self,
        model: LanguageModel,
        loader: Loader,
        val_batches: Callable[[], Iterator[Batch]],
        characters: np.ndarray,
        config: Config,
        folder: Path,
        device: torch.device,
        metrics: Metrics,
        extra_metrics: Callable[[], dict[str, float]] = dict,
        belongs_to: dict[str, Any] | None = None,
        ranks: Ranks = ALONE,
        run_format: int = FORMAT,
        sharded: Sharded | None = None,
    ):
        self.plain, self.sharded = model, sharded
        model = self.model = sharded.model if sharded else model
        self.loader, self.val_batches, self.characters = loader, val_batches, characters
        self.config, self.folder, self.device, self.metrics = config, folder, device, metrics
        self.extra_metrics, self.belongs_to = extra_metrics, belongs_to
        self.ranks, self.draws_by_step = ranks, run_format >= DRAWS_BY_STEP
        if run_format < FUSES:
            keep_bits(model)
        sparse = sparse_parameters(model)  # left out of clipping: Adam's steps do not depend on a gradient's scale
        self.clipped = [p for name, p in model.named_parameters() if p.requires_grad and name not in sparse]
        dtype, _ = runtime.choose_dtype(config.machine.dtype, device)
        half = device.type == "cpu" and dtype == torch.bfloat16
        self.optimizers = make_optimizers(model, config.optim, ranks, half)
        self.graphed = graphed_step(self)
        self.autocast = runtime.autocast(device, dtype)
        self.progress, self.begun = Progress(), 0
        self.lost_best: int | None = None  # the step of a `best/` that is newer than the `last/` to go on from
        self.budget, self.bar = Budget(config.optim, self.progress), tqdm(disable=True)
        self.carries_state = getattr(config.net, "carry_state", False)
        self.carried: State | None = None
        self.dealing = dealing_of(config, model, ranks)
        apart = runtime.computes_apart(device)
        self.feed = Feed(loader, self.dealing, config.optim.micro_batches, self.prepare, apart)
        self.saver = Saver(folder, belongs_to, apart)
        self.gradients: GradientSum | None = None
        if ranks.world > 1:
            tables = [p for p in sparse.values() if p.requires_grad]
            self.gradients = GradientSum([] if sharded else self.clipped, tables, ranks)
        self.sums = share_sums(model) if self.dealing.by_rows else WholeBatch()
        self.losses = Losses(ranks, device)
        self.signals = runtime.Signals(ranks)

    def train(self) -> None:
        """Train until the steps or the minutes are used, or patience runs out. Raises Interrupted, after saving, on a
        signal, and UserError when the loss is not finite."""
        self.model.train()
        if self.sharded is not None:
            self.sharded.free()
        self.budget, self.begun = Budget(self.config.optim, self.progress), self.progress.step
        self.signals = runtime.Signals(self.ranks)
        with self.signals, self.budget.bar() as self.bar, self.feed, self.saver, self._profile() as profile:
            while True:
                self.saver.check()
                self.budget.read_clock(self.ranks.first)
                if self._evaluation_is_due():
                    self._evaluate_and_save()
                if self.signals.agreed is not None:
                    self._save_and_leave(self.signals.agreed)
                if self._save_is_due():
                    self._save_between()
                if self._is_over():
                    return
                profile.next_step()
                self.step()
                self.budget.show(self.bar)

    def _profile(self) -> Profile:
        """What --profile records; of several processes the first one's steps."""
        n_steps = self.config.run.profile if self.ranks.is_first else None
        return Profile(n_steps, self.folder, self.device, self._show)

    def _is_over(self) -> bool:
        return self.budget.used >= 1 or self._is_out_of_patience()

    def _save_and_leave(self, signum: int) -> NoReturn:
        self._check_losses()
        with self.saver.one_save():
            self.save_last()
        self.saver.wait()
        self.ranks.wait()  # torchrun ends all where one has left
        raise runtime.Interrupted(signum)

    def step(self) -> None:
        """One optimizer step, on as many batches as it accumulates."""
        started = time.perf_counter()
        lr = self.set_lr()
        shares, batches, sizes, _ = self.feed.next()
        divisor, n_tokens = self.dealing.totals(shares, sizes, self.signals)
        compute, parts = self.graphed or self, []
        for n, (share, batch) in enumerate(zip(shares, batches, strict=True), 1):
            if self.gradients is not None:
                self.gradients.waits = self.dealing.by_rows and n < len(shares)
            if self.draws_by_step:
                draw_from(self.device, self.config.run.seed, self.progress.step, share.micro_batch, share.part)
            self.sums.counts = share.deal.counts
            parts.append(compute.backward(batch, divisor if share.deal.counts else math.inf))
        if self.gradients is not None:
            self.gradients.finish()
        self.losses.note(self.progress.step, lr, parts, compute.clip(), divisor)
        if self.losses.is_due:
            self._check_losses()
        compute.update()
        self.progress.step += 1
        self.progress.tokens += n_tokens
        self.progress.seconds += time.perf_counter() - started

    def backward(self, batch: Batch, divisor: float) -> Tensor:
        """Add the gradient of a prepared batch's summed loss over `divisor`, that of the whole step. Returns the
        sum."""
        nll_sum, state = self.forward(batch.to(self.device))
        (nll_sum / (divisor or 1)).backward()
        if self.gradients is not None:
            self.gradients.round()
        if self.carries_state:
            self.carried = {name: vector.detach() for name, vector in state.items()}
        return nll_sum.detach() if math.isfinite(divisor) else torch.zeros_like(nll_sum)

    def forward(self, batch: Batch) -> tuple[Tensor, State]:
        """The summed loss of a batch on the device, and the state after it. Rows of a fine-tuning set have no position
        in a text; what stands before them, as the source of a translation, is read with a gradient."""
        state = None if batch.position is None else self.model.start(None, batch.position)
        if batch.prefix is not None:
            with self.autocast:
                state = self.model.start(batch.prefix, batch.position)
        state = state if batch.fresh else self.carried
        options = {"weight": batch.weight, "starts": batch.starts}
        options = {name: value for name, value in options.items() if value is not None}
        with self.autocast:
            out = self.model(batch.tokens, batch.targets, state, want_logits=False, **options)
        return out.nll_sum, out.state

    def update(self) -> None:
        """Move the weights by their gradients, and forget these."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @property
    def packs(self) -> bool:
        """Whether rows are laid end to end: where the model takes them so, and is not replayed, which wants few shapes.
        What is fine-tuned may be another kind of model."""
        may_be = isinstance(self.model, LanguageModel) and self.graphed is None
        return may_be and self.model.takes_packed(self.device)

    def prepare(self, batch: Batch) -> Batch:
        """What the CPU does with a batch before it goes to the device."""
        return (end_to_end(batch) if self.packs else batch).near(self.device)

    def set_lr(self) -> float:
        """Set every group's learning rate to this step's, and return the peak one's."""
        optim, step, time_used = self.config.optim, self.progress.step, self.budget.time_used
        factor = lr_factor(optim.schedule, step, optim.steps, optim.warmup, optim.lr_floor, time_used)
        for optimizer in self.optimizers:
            set_lr(optimizer, factor)
        return optim.lr * factor

    def clip(self) -> Tensor | None:
        """Shorten the gradient to its largest norm; its norm before, or None where it is not clipped."""
        if not self.config.optim.grad_clip:
            return None
        return whole(torch.nn.utils.clip_grad_norm_(self.clipped, self.config.optim.grad_clip))

    def _check_losses(self) -> None:
        """Add the losses that were not read yet to the progress. Raises UserError for one that is not finite."""
        progress, losses = self.progress, self.losses.read()
        for loss in losses:
            if not math.isfinite(loss.nll_sum):
                raise self._diverged("training loss", loss.step, loss.lr)
            progress.nll_sum += loss.nll_sum
            progress.nll_tokens += loss.divisor
        if losses:
            last = losses[-1].nll_sum / (losses[-1].divisor or 1)
            rate = progress.tokens / progress.seconds if progress.seconds else 0
            self.bar.set_postfix_str(f"loss {last:.3f}, {rate:,.0f} tokens/s", refresh=False)

    def _diverged(self, quantity: str, step: int, lr: float) -> UserError:
        return diverged(quantity, step, lr, self.config.optim, self.folder)

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        due = step % self.config.optim.eval_interval == 0 or self.budget.used >= 1
        return due and self.progress.evaluated != step and not self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        return self.progress.is_out_of_patience(self.config.optim.patience)

    def _evaluate_and_save(self) -> None:
        """Evaluate, write a line of metrics, save `best/` where the loss is the lowest so far, and `last/`. A signal
        during the evaluation leaves all of it out."""
        self._check_losses()
        with self.autocast:
            evaluation = evaluate_unless(
                self.signals.stop, self.model, self.val_batches, self.characters, self.device, self.ranks
            )
        if evaluation is None:
            return
        if not math.isfinite(evaluation.loss):
            raise self._diverged("validation loss", self.progress.step, self.set_lr())
        is_best = self.progress.note(evaluation, self._best_is_lost())
        if self.sharded is not None:
            self.sharded.collect()
        extra = self.extra_metrics() if self.ranks.is_first else {}
        if self.ranks.is_first:
            self.metrics.write(self.progress.line(evaluation, self.set_lr(), extra))
        self.budget.read_clock(self.ranks.first)
        said = self.progress.says(evaluation, extra, is_best)
        with self.saver.one_save():
            if is_best:
                self.save_best(evaluation)
                self.lost_best = None
            if self._evaluation_saves():
                self.save_last()
            self.saver.then(lambda: self._show(said))

    def _show(self, said: str) -> None:
        with contextlib.suppress(OSError):  # the reader of the output has closed it: the training goes on
            self.bar.write(said)

    def _best_is_lost(self) -> bool:
        """Whether `best/` is of an evaluation after the save that the run goes on from, which was not met again on the
        way: elsewhere than on the CPU, or with another --eval-interval. Then this evaluation takes its place."""
        return self.lost_best is not None and (self.progress.step >= self.lost_best or self.budget.used >= 1)

    def _evaluation_saves(self) -> bool:
        """Whether `last/` is saved with this evaluation: without --save-interval always, and always with the last."""
        interval = self.config.optim.save_interval
        return interval is None or self.progress.step % interval == 0 or self._is_over()

    def _save_is_due(self) -> bool:
        """Whether `last/` is to be saved although there was no evaluation."""
        step, interval = self.progress.step, self.config.optim.save_interval
        return interval is not None and step % interval == 0 and step not in (self.begun, self.progress.evaluated)

    def _save_between(self) -> None:
        """Save `last/` between two evaluations. Raises UserError for weights that are not finite, as an evaluation
        does: they would take the place of the last good ones."""
        self._check_losses()
        if not all_finite(self.model):
            raise self._diverged("sum of the weights", self.progress.step, self.set_lr())
        with self.saver.one_save():
            self.save_last()

    def save_best(self, evaluation: Evaluation) -> None:
        facts = {"step": self.progress.step, "val_loss": evaluation.loss, "val_bits_per_char": evaluation.bits_per_char}
        self._save("best", {"model": trained_weights(self.plain)}, facts)

    def save_last(self) -> None:
        if self.sharded is not None:
            self.sharded.collect()
        tensors, facts = self.state()
        self._save("last", {"model": trained_weights(self.plain), "trainer": tensors}, facts)

    def _save(self, name: str, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
        if self.ranks.is_first:
            self.saver.save(name, tensors, facts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state that `resume` loads besides the weights: tensors by name, and JSON."""
        return state_of(self)

    def resume(self, folder: Path) -> None:
        """Load the checkpoint `folder` (a `last/`), so that training continues bit for bit."""
        go_on_from(folder, self)
