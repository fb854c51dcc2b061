"""Train any family in NumPy: `python -m makemore.scratch.train --help`. Torch is never loaded.

The batches are those that train.py deals for the same flags, and the run is one that sample.py reads.
"""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.batches import counting_arrays
from data.errors import UserError, run_command
from data.prepare import print_notes
from data.program import command, recorded
from data.store import Store
from data.tokenizers import Tokenizer
from engine.config.checks import refuse_contradictions
from engine.config.flags import parse
from engine.config.sections import Config
from engine.config.settings import shape, stored
from engine.run import checkpoint, folder
from engine.run.identity import check_identity, identity
from engine.texts import long_lines, prepare_text, with_context
from engine.training.progress import Progress
from makemore.counts.bigram import bigram_table
from makemore.scratch.base import Model
from makemore.scratch.functions import Array
from makemore.scratch.models import MODELS
from makemore.scratch.options import NumPyConfig
from makemore.scratch.training import Training


def build(config: NumPyConfig, store: Store, dtype: Any = np.float32) -> Model:
    """A new model, its weights drawn from the seed."""
    models: dict[str, Any] = MODELS
    if config.machine.engine == "tape":
        from makemore.scratch.taped import TAPED as models
    tokenizer = store.tokenizer
    return models[config.model](tokenizer.vocab_size, config.net, tokenizer.special, config.run.seed, dtype)


def read_parent(config: NumPyConfig, explicit: set[str]) -> tuple[Tokenizer, dict[str, Array]]:
    """The tokenizer and the weights of the run that `--init` names. Raises UserError for one of another model."""
    path, which = Path(config.run.init or ""), config.run.checkpoint or "best"
    facts = folder.read_facts(path)
    if folder.task_of(facts) is not None or checkpoint.find(path / "base"):
        raise UserError(f"{path} is a fine-tuned run; --init takes one of {command('train')} or of this command")
    refuse_contradictions(config, explicit & shape(Config), facts["config"], set(), "--init")
    for name, value in config.fixed.items():
        if name in shape(Config) and facts["config"].get(name, value) != value:
            raise UserError(f"{path} has {name} {facts['config'][name]}, which is not among the NumPy models")
    tokenizer = folder.read_tokenizer(path, facts["vocab_size"])
    check_identity(path / which, identity(facts, tokenizer))
    return tokenizer, checkpoint.load(path / which, ("model",), "numpy")[0]["model"]


def train(config: NumPyConfig, explicit: set[str]) -> Path:
    """Train the run that `config` describes. Returns its folder."""
    tokenizer, weights = read_parent(config, explicit) if config.run.init else (None, None)
    store = prepare_text(config, tokenizer)
    if store.kind == "series":
        raise UserError(f"--kind series is for {command('train')}; the families in NumPy write texts")
    config = cast(NumPyConfig, with_context(config, store))
    model = build(config, store)
    if weights is not None:
        try:
            model.load_state_dict(weights)
        except ValueError as error:
            raise UserError(f"{config.run.init} does not fit: {error}") from error
    with folder.create(
        config.run.out,
        config.run.overwrite,
        stored(config),
        store.tokenizer,
        store.about,
        recorded(config.program),
        can_resume=False,
    ) as path:
        print_notes(store.meta["notes"] + long_lines(config, store))
        size = sum(array.size for array in model.parameters.values())
        print(
            f"{config.model} in NumPy ({size:,} parameters) on {store.meta['name']}, run directory {path}", flush=True
        )
        training = Training(model, config, store, path)
        if config.net.is_counted:
            inputs, targets, _ = counting_arrays(store.train)
            table, pairs = bigram_table(inputs, targets, store.tokenizer.vocab_size, store.tokenizer.special)
            model.parameters["table.weight"][...] = table
            model.buffers["pairs"] = np.array(pairs)
            training.progress = Progress(step=1, tokens=len(targets))
            print(training.evaluate())
        else:
            training.run()
        training.finish()
    return path


def main() -> int:
    config, explicit = parse(sys.argv[1:], NumPyConfig)
    train(config, explicit)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
