"""`train.py --eval-only`: the validation loss of a run, on its own text or another."""

import json
from pathlib import Path

from data.batches import eval_batches
from data.errors import UserError
from data.prepare import VAL_FRACTION, prepare, print_notes
from data.tables import is_table
from engine import runtime
from engine.config.checks import refuse_contradictions
from engine.config.sections import BACKENDS, Config
from engine.evaluate import evaluate
from engine.run import report
from engine.run.folder import read_facts
from engine.run.load import load_run
from engine.texts import store_of_run
from engine.training.trainer import Progress

_MAY_CHANGE = {
    "data", "val_data", "kind", "separator", "text_column", "encoding", "eval_tokens", "device", "threads", "dtype",
    *BACKENDS,
}  # fmt: skip


def evaluate_run(config: Config, given: set[str]) -> int:
    """Evaluate a run on its own validation text or on the given data, and print one JSON line."""
    path = Path(config.out)
    facts = read_facts(path)
    refuse_contradictions(config, given, facts["config"], _MAY_CHANGE, "--eval-only")
    backends = {name: getattr(config, name) for name in BACKENDS if name in given}
    loaded = load_run(path, config.checkpoint or "best", config.device, **backends)
    if "data" in given and "val_data" in given:
        raise UserError("--eval-only takes --data (its validation split) or --val-data (all of it), not both")
    if given & {"data", "val_data"}:
        data, part = (config.val_data, 1) if "val_data" in given else (config.data, VAL_FRACTION)
        files = map(Path, [data] if isinstance(data, str) else data)
        column = config.text_column if "text_column" in given or all(map(is_table, files)) else None
        store = prepare(
            data, kind=config.kind, separator=config.separator, text_column=column,
            encoding=config.encoding, vocabulary=loaded.tokenizer, val_fraction=part,
        )  # fmt: skip
        print_notes(store.meta["notes"])
    else:
        store = store_of_run(config, facts, loaded.tokenizer)
    batches = eval_batches(store.val, loaded.config.context, config.eval_tokens, loaded.model.history)
    with runtime.autocast(loaded.device, runtime.choose_dtype(config.dtype, loaded.device)[0]):
        found = evaluate(loaded.model, batches, loaded.tokenizer.characters(), loaded.device)
    known = report.read_summary(path)
    summary = report.describe(loaded.model, Progress(), loaded.config)
    summary |= {name: known.get(name) for name in summary if name not in ("model", "params", "peak_memory_mb")}
    summary |= {name: known[name] for name in ("longest_copied",) if name in known}
    summary |= {
        "val_loss": found.loss, "val_bits_per_char": found.bits_per_char, "val_tokens": found.n_tokens,
        "best_step": loaded.facts.get("step"),
    }  # fmt: skip
    print(json.dumps(summary))
    return 0
