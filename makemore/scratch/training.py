"""The training of a model in NumPy: steps, evaluations, and what its run keeps."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.batches import IGNORE, Batch
from data.disk import replace_file
from data.errors import UserError
from data.eval_batches import eval_batches
from data.store import Store
from data.terminal import show
from engine.run import checkpoint, folder, results
from engine.run.identity import identity
from engine.texts import make_loader
from engine.training.budget import Budget
from engine.training.metrics import Metrics
from engine.training.progress import Evaluation, Progress
from engine.training.schedules import lr_factor
from makemore.scratch import optimizers, sampling
from makemore.scratch.base import Model
from makemore.scratch.functions import Array
from makemore.scratch.layers import Gradients
from makemore.scratch.options import NumPyConfig

SAMPLE_SEED, N_SAMPLES, N_CHARACTERS = 42, 20, 200


class Training:
    """A model at work: its steps, its evaluations, its run."""

    def __init__(self, model: Model, config: NumPyConfig, store: Store, path: Path):
        self.model, self.config, self.store, self.path = model, config, store, path
        self.loader = None if config.net.is_counted else make_loader(config, store)
        self.optimizer = make_optimizer(config)
        self.metrics = Metrics(path)
        self.progress = Progress()
        self.budget = Budget(config.optim, self.progress)
        self.belongs_to = identity(folder.read_facts(path), store.tokenizer)

    def run(self) -> None:
        """All steps, with an evaluation every so many. After Ctrl-C one more, so that what was learned is kept where it
        is the best."""
        try:
            # What overflows ends in a loss that is not finite, which `step` says.
            with np.errstate(over="ignore", invalid="ignore"):
                self._run()
        except KeyboardInterrupt:
            print(self.evaluate())
            print(
                f"stopped at step {self.progress.step}; the weights of step {self.progress.best_step} are kept: "
                f"{folder.sample_command(self.path)}, or go on with --init {self.path}"
            )
            raise

    def _run(self) -> None:
        optim, progress = self.config.optim, self.progress
        with self.budget.bar() as bar:
            while True:
                self.budget.read_clock()
                is_over = self.budget.used >= 1 or (optim.patience is not None and progress.worse >= optim.patience)
                if progress.evaluated != progress.step and (is_over or progress.step % optim.eval_interval == 0):
                    bar.write(self.evaluate())
                if is_over:
                    return
                self.step()
                self.budget.show(bar)

    def step(self) -> float:
        """One step of the optimizer. Returns the mean loss of its batches."""
        assert self.loader is not None  # what counts takes no steps
        started = time.perf_counter()
        batches = [self.loader.next() for _ in range(self.config.optim.micro_batches)]
        loss, gradients = step_gradients(self.model, batches)
        if not math.isfinite(loss):
            raise UserError(f"the training loss is not finite at step {self.progress.step}: try a lower --lr")
        if self.config.optim.grad_clip:
            optimizers.clip(gradients, self.config.optim.grad_clip)
        self.optimizer.lr = self.lr()
        self.optimizer.step(self.model.parameters, gradients)
        n_tokens = sum(batch.n_tokens for batch in batches)
        self.progress.step += 1
        self.progress.tokens += n_tokens
        self.progress.nll_sum += loss * n_tokens
        self.progress.nll_tokens += n_tokens
        self.progress.seconds += time.perf_counter() - started
        return loss

    def lr(self) -> float:
        """The learning rate of this step."""
        optim, step = self.config.optim, self.progress.step
        factor = lr_factor(optim.schedule, step, optim.steps, optim.warmup, optim.lr_floor, self.budget.time_used)
        return optim.lr * factor

    def evaluate(self) -> str:
        """Measure the validation loss, write it down, and keep the weights where they are the best. What to say."""
        progress = self.progress
        found = evaluate(self.model, self.batches(), self.store.characters())
        progress.train_loss = progress.nll_sum / progress.nll_tokens if progress.nll_tokens else None
        progress.nll_sum, progress.nll_tokens = 0.0, 0
        progress.evaluated, progress.val_tokens = progress.step, found.n_tokens
        is_best = progress.best_val is None or found.loss < progress.best_val
        progress.worse = 0 if is_best else progress.worse + 1
        measured = {"val_loss": found.loss, "val_bits_per_char": found.bits_per_char}
        if is_best:
            progress.best_val, progress.best_bits, progress.best_step = found.loss, found.bits_per_char, progress.step
            facts = {"step": progress.step, **measured}
            checkpoint.save(self.path / "best", {"model": self.model.state_dict()}, facts, self.belongs_to)
        self.metrics.write(
            {"step": progress.step, "train_loss": progress.train_loss, **measured, "lr": self.lr(),
             "tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        )  # fmt: skip
        train = "" if progress.train_loss is None else f"train {progress.train_loss:.4f}  "
        mark = "  best" if is_best else ""
        return f"step {progress.step:5d}  {train}val {found.loss:.4f}  {progress.seconds:6.1f} s{mark}"

    def batches(self) -> Iterator[Batch[Array]]:
        """The windows of evaluation."""
        return eval_batches(self.store.val, self.config.net.context, self.config.text.eval_tokens)()

    def finish(self) -> None:
        """Samples of the best weights, the summary, the picture of the loss."""
        config, progress, store = self.config, self.progress, self.store
        self.model.load_state_dict(checkpoint.load(self.path / "best", ("model",), "numpy")[0]["model"])
        self.model.eval()
        context = config.net.context
        if store.kind == "stream":
            text = sampling.stream(
                self.model, store.tokenizer, store.meta["start"], N_CHARACTERS, context, SAMPLE_SEED
            ).strip("\n")
        else:
            text = "\n".join(sampling.lines(self.model, store.tokenizer, N_SAMPLES, context, SAMPLE_SEED))
        replace_file(self.path / "samples.txt", (text + "\n").encode("utf-8"))
        params = sum(array.size for array in self.model.parameters.values())
        results.write_summary(self.path, results.describe(config.model, params, progress))
        results.draw_loss(self.metrics, self.path)
        show(f"\n{text}\n")
        print(
            f"val loss {progress.best_val:.4f} at step {progress.best_step}; {progress.seconds:.1f} s of training, "
            f"loss curve in {self.path / 'loss.png'}\n\nrun directory: {self.path}\n"
            f"more samples:  {folder.sample_command(self.path)}"
        )


def step_gradients(model: Model, batches: list[Batch[Array]]) -> tuple[float, Gradients]:
    """The mean loss of all targets of these batches, and its gradients."""
    divisor = sum(batch.n_tokens for batch in batches) or 1
    total = 0.0
    gradients: Gradients = {}
    for batch in batches:
        nll_sum, back = model.loss(batch.tokens, batch.targets)
        total += nll_sum
        for name, gradient in back(1 / divisor).items():
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return total / divisor, gradients


def evaluate(model: Model, batches: Iterator[Batch[Array]], characters: Array) -> Evaluation:
    """The loss over `batches` in evaluation mode. `characters` (V,): how many each id stands for."""
    found = Evaluation(0.0, 0, 0)
    model.eval()
    for batch in batches:
        nll_sum, _ = model.loss(batch.tokens, batch.targets)
        found += Evaluation(nll_sum, batch.n_tokens, int(characters[batch.targets[batch.targets != IGNORE]].sum()))
    model.train()
    return found


def make_optimizer(config: NumPyConfig) -> optimizers.Optimizer:
    """The optimizer of `config`, with train.py's settings. Embedding tables have no weight decay."""
    optim = config.optim
    match optim.optimizer:
        case "sgd":
            return optimizers.SGD(optim.lr)
        case "momentum":
            return optimizers.SGD(optim.lr, optim.momentum)
        case "adagrad":
            return optimizers.Adagrad(optim.lr)
        case "rmsprop":
            return optimizers.RMSprop(optim.lr, optim.beta2)
        case "adam":
            return optimizers.Adam(optim.lr, optim.beta1, optim.beta2)
        case _:
            tables = frozenset({"wte.weight", "wpe.weight", "table.weight"})
            return optimizers.AdamW(
                optim.lr, optim.beta1, optim.beta2, weight_decay=optim.weight_decay, undecayed=tables
            )
