"""Fitting a model that counts: one pass instead of a training."""

import contextlib
import time

from data.batches import counting_arrays
from engine.evaluate import evaluate
from engine.run import checkpoint
from engine.run.identity import check_identity
from engine.task import Session
from engine.training.progress import Progress


def count(session: Session) -> Progress:
    """Fit a model that counts: one step, and its only checkpoint is the best one and the last one."""
    model, path = session.model, session.folder
    check_identity(path / "last", session.identity)
    session.metrics.cut_back(-1)
    started = time.perf_counter()
    inputs, targets, position = counting_arrays(session.data.train)
    model.fit(inputs, targets, position)
    seconds = time.perf_counter() - started
    model.to(session.device).eval()
    loss = evaluate(model, session.batches.val, session.batches.characters, session.device)
    progress = Progress(
        step=1, tokens=len(targets), seconds=seconds, evaluated=1, best_val=loss.loss, best_bits=loss.bits_per_char,
        best_step=1, val_tokens=loss.n_tokens,
    )  # fmt: skip
    measured = {"val_loss": loss.loss, "val_bits_per_char": loss.bits_per_char}
    session.metrics.write(
        {"step": 1, "train_loss": None, **measured, "tokens": len(targets), "seconds": round(seconds, 3)}
    )
    for name in ("best", "last"):
        checkpoint.save(path / name, {"model": model.state_dict()}, {"step": 1, **measured}, session.identity)
    order = f"order {model.order}, " if hasattr(model, "order") else ""
    with contextlib.suppress(OSError):
        print(f"counted {len(targets):,} tokens in {seconds:.2f} s: {order}val {loss.loss:.4f}")
    return progress
