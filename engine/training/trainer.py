"""The one training loop, and its state, which a checkpoint stores to resume exactly."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.batches import Batch, Loader
from data.end_to_end import end_to_end
from data.errors import UserError
from data.json_files import check_schema
from engine import runtime
from engine.config.sections import Config
from engine.distributed.dealing import WholeBatch, dealing_of, share_sums
from engine.distributed.gradients import GradientSum
from engine.distributed.ranks import ALONE, Ranks
from engine.distributed.sharding import Sharded, all_whole, whole
from engine.evaluate import evaluate_unless
from engine.run import checkpoint
from engine.run.folder import DRAWS_BY_STEP, FORMAT
from engine.run.weights import load_state, trained_weights
from engine.training.budget import Budget
from engine.training.drawing import draw_from
from engine.training.losses import Losses
from engine.training.metrics import Metrics
from engine.training.optimizers import make_optimizers
from engine.training.progress import Evaluation, Progress
from engine.training.schedules import lr_factor
from engine.training.state import TRAINER_FACTS, load_optimizer_state, optimizer_state, under
from makemore.base import LanguageModel, State
from makemore.layers import sparse_parameters

OLD_STATE = {"last": "history", "place": "position"}  # parts of a carried state by their names in older checkpoints


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
        sparse = sparse_parameters(model)  # left out of clipping: Adam's steps do not depend on a gradient's scale
        self.clipped = [p for name, p in model.named_parameters() if p.requires_grad and name not in sparse]
        dtype, _ = runtime.choose_dtype(config.machine.dtype, device)
        half = device.type == "cpu" and dtype == torch.bfloat16
        self.optimizers = make_optimizers(model, config.optim, ranks, half)
        self.autocast = runtime.autocast(device, dtype)
        self.progress = Progress()
        self.budget, self.bar = Budget(config.optim, self.progress), tqdm(disable=True)
        self.carries_state = getattr(config.net, "carry_state", False)
        self.carried: State | None = None
        self.dealing = dealing_of(config, model, ranks)
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
        self.budget = Budget(self.config.optim, self.progress)
        self.signals = runtime.Signals(self.ranks)
        with self.signals, self.budget.bar() as self.bar:
            while True:
                self.budget.read_clock(self.ranks.first)
                if self._evaluation_is_due():
                    self._evaluate_and_save()
                if self.signals.agreed is not None:
                    self._check_losses()
                    self.save_last()
                    self.ranks.wait()  # torchrun ends all where one has left
                    raise runtime.Interrupted(self.signals.agreed)
                if self.budget.used >= 1 or self._is_out_of_patience():
                    return
                self.step()
                self.budget.show(self.bar)

    def step(self) -> None:
        """One optimizer step, on as many batches as it accumulates."""
        started = time.perf_counter()
        lr = self.set_lr()
        shares = self.dealing.shares([self.loader.deal() for _ in range(self.config.optim.micro_batches)])
        batches = [self.loader.batch(share.deal) for share in shares]
        divisor, n_tokens = self.dealing.totals(shares, batches, self.signals)
        parts = []
        for n, (share, batch) in enumerate(zip(shares, batches, strict=True), 1):
            if self.gradients is not None:
                self.gradients.waits = self.dealing.by_rows and n < len(shares)
            if self.draws_by_step:
                draw_from(self.device, self.config.run.seed, self.progress.step, share.micro_batch, share.part)
            self.sums.counts = share.deal.counts
            parts.append(self.backward(batch, divisor if share.deal.counts else math.inf))
        if self.gradients is not None:
            self.gradients.finish()
        self.losses.note(self.progress.step, lr, parts, self.clip(), divisor)
        if self.losses.is_due:
            self._check_losses()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += n_tokens
        self.progress.seconds += time.perf_counter() - started

    def backward(self, batch: Batch, divisor: float) -> Tensor:
        """Add the gradient of a batch's summed loss over `divisor`, that of the whole step, and return that sum."""
        batch = (end_to_end(batch) if self._takes_packed() else batch).to(self.device)
        state = self._start(batch) if batch.fresh else self.carried
        with self.autocast:
            options = {"weight": batch.weight, "starts": batch.starts}
            options = {name: value for name, value in options.items() if value is not None}
            out = self.model(batch.tokens, batch.targets, state, want_logits=False, **options)
        (out.nll_sum / (divisor or 1)).backward()
        if self.gradients is not None:
            self.gradients.round()
        if self.carries_state:
            self.carried = {name: vector.detach() for name, vector in out.state.items()}
        return out.nll_sum.detach() if math.isfinite(divisor) else torch.zeros_like(out.nll_sum)

    def _takes_packed(self) -> bool:
        """Whether the model takes rows laid end to end; what is fine-tuned may be another kind of model."""
        return isinstance(self.model, LanguageModel) and self.model.takes_packed(self.device)

    def _start(self, batch: Batch) -> State | None:
        """The state in which the model begins a batch; rows of a fine-tuning set have no position in a text."""
        return None if batch.position is None else self.model.start(None, batch.position)

    def set_lr(self) -> float:
        """Set every group's learning rate to this step's, and return the peak one's."""
        optim, step, time_used = self.config.optim, self.progress.step, self.budget.time_used
        factor = lr_factor(optim.schedule, step, optim.steps, optim.warmup, optim.lr_floor, time_used)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
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
                raise self._diverged(loss.step, loss.lr, "training loss")
            progress.nll_sum += loss.nll_sum
            progress.nll_tokens += loss.divisor
        if losses:
            last = losses[-1].nll_sum / (losses[-1].divisor or 1)
            rate = progress.tokens / progress.seconds if progress.seconds else 0
            self.bar.set_postfix_str(f"loss {last:.3f}, {rate:,.0f} tokens/s", refresh=False)

    def _diverged(self, step: int, lr: float, quantity: str) -> UserError:
        last = checkpoint.find(self.folder / "last")
        saved = f"; {last} keeps the last good checkpoint" if last else ""
        muon = " and --muon-lr" if self.config.optim.optimizer == "muon" else ""
        clip = "" if self.config.optim.grad_clip else ", --grad-clip 1"
        return UserError(
            f"the {quantity} is not finite at step {step} (learning rate {lr:.2g}): try a lower --lr{muon} "
            f"(a third), a longer --warmup{clip} or --dtype float32{saved}"
        )

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
        progress = self.progress
        if not math.isfinite(evaluation.loss):
            raise self._diverged(progress.step, self.set_lr(), "validation loss")
        if progress.nll_tokens:
            progress.train_loss = progress.nll_sum / progress.nll_tokens
        progress.nll_sum, progress.nll_tokens, progress.evaluated = 0.0, 0, progress.step
        progress.val_tokens = evaluation.n_tokens
        is_best = progress.best_val is None or evaluation.loss < progress.best_val
        if is_best:
            progress.best_val, progress.best_bits = evaluation.loss, evaluation.bits_per_char
            progress.best_step = progress.step
        progress.worse = 0 if is_best else progress.worse + 1
        if self.sharded is not None:
            self.sharded.collect()
        extra = self.extra_metrics() if self.ranks.is_first else {}
        if self.ranks.is_first:
            self._write_metrics(evaluation, extra)
        self.budget.read_clock(self.ranks.first)
        if is_best:
            self.save_best(evaluation)
        self.save_last()
        self._show(evaluation, extra, is_best)

    def _write_metrics(self, evaluation: Evaluation, extra: dict[str, float]) -> None:
        progress = self.progress
        self.metrics.write(
            {
                "step": progress.step,
                "train_loss": progress.train_loss,
                "val_loss": evaluation.loss,
                "val_bits_per_char": evaluation.bits_per_char,
                "lr": self.set_lr(),
                "tokens": progress.tokens,
                "seconds": round(progress.seconds, 3),
                **extra,
            }
        )

    def _show(self, evaluation: Evaluation, extra: dict[str, float], is_best: bool) -> None:
        progress = self.progress
        train = "" if progress.train_loss is None else f"train {progress.train_loss:.4f}  "
        mark = "  best" if is_best else ""
        with contextlib.suppress(OSError):  # the reader of the output has closed it: the training goes on
            self.bar.write(
                f"step {progress.step:5d}  {train}val {evaluation.loss:.4f}  "
                + "".join(f"{name.removeprefix('val_')} {value:.4f}  " for name, value in extra.items())
                + f"{progress.seconds:6.1f} s{mark}"
            )

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
            checkpoint.save(self.folder / name, tensors, facts, self.belongs_to)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state that `resume` loads besides the weights: tensors by name, and JSON."""
        tensors, numbers = optimizer_state(self.model, self.optimizers)
        if self.sharded is not None:
            tensors = all_whole(tensors, self.ranks)
        if not self.draws_by_step:
            tensors["rng.cpu"] = torch.get_rng_state()
            if self.device.type == "cuda":
                tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for name, vector in self.dealing.whole(self.carried).items():
            tensors[f"carried.{name}"] = vector
        facts = {"progress": asdict(self.progress), "loader": self.loader.state_dict(), "optimizer": numbers}
        return tensors, {"step": self.progress.step, "val_loss": None, **facts}

    def resume(self, folder: Path) -> None:
        """Load the checkpoint `folder` (a `last/`), so that training continues bit for bit."""
        tensors, facts = checkpoint.load(folder, ("model", "trainer"))
        check_schema(facts, TRAINER_FACTS, str(folder / "facts.json"))
        load_state(self.plain, tensors["model"], folder)
        if self.sharded is not None:
            self.sharded.spread()
        stored = tensors["trainer"]
        try:
            self.progress = Progress(**facts["progress"])
            self.loader.load_state_dict(facts["loader"])
            load_optimizer_state(self.model, self.optimizers, stored | facts["optimizer"])
            if not self.draws_by_step:
                torch.set_rng_state(stored["rng.cpu"])
        except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder} does not hold a state this version can go on with ({error})") from error
        if self.device.type == "cuda" and "rng.cuda" in stored:
            torch.cuda.set_rng_state(stored["rng.cuda"], self.device)
        carried = {}
        for name, vector in under(stored, "carried.").items():
            *path, part = name.split(".")  # of a mixture's neural model: neural.history
            carried[".".join([*path, OLD_STATE.get(part, part)])] = vector.to(self.device)
        self.carried = self.dealing.own(carried) or None
        if self.ranks.is_first:
            self.metrics.cut_back(self.progress.evaluated)
