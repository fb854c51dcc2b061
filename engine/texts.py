"""A run's text: which store it is, its context, and the loader that deals its batches."""

import dataclasses
from typing import Any

from data.batches import LaneLoader, LineLoader, Loader, StreamLoader, longest_line
from data.errors import UserError
from data.prepare import open_or_discard, prepare
from data.sources import cache_folder
from data.store import Store
from data.tokenizers import Tokenizer
from engine import presets
from engine.config import Config


def store_of_run(config: Config, facts: dict[str, Any], tokenizer: Tokenizer) -> Store:
    """The text of a run: prepared already, or prepared again and then checked to be the same."""
    if kept := open_or_discard(cache_folder() / "prepared" / facts["data"]["folder"]):
        return kept
    store = prepare(
        config.data, val_data=config.val_data, kind=config.kind, tokenizer=config.tokenizer, encoding=config.encoding,
        vocabulary=tokenizer if config.init else None,
    )  # fmt: skip
    if store.key != facts["data"]["key"]:
        raise UserError(
            f"the text of {config.data} has changed since the run began, or this version prepares it in another way; "
            f"start a new run with --init {config.out}"
        )
    return store


def with_context(config: Config, store: Store) -> Config:
    """Lines without a given context get one that holds the longest, within reason; everything else has one."""
    context = config.context or presets.STREAM_CONTEXT
    if config.context is None and store.kind == "lines":
        context = min(max(longest_line(store.train), longest_line(store.val)), presets.LINES_CONTEXT)
    return dataclasses.replace(config, kind=store.kind, context=context)


def make_loader(config: Config, store: Store) -> Loader:
    """The training batches of `config`. Raises UserError for a text that is too short for them."""
    if config.carry_state and store.kind != "stream":
        raise UserError("--carry-state is for streams: lines do not go on from one to the next; use --kind stream")
    kind = LaneLoader if config.carry_state else StreamLoader if store.kind == "stream" else LineLoader
    return kind(store.train, config.context, config.batch_size, config.seed)


def long_lines(config: Config, store: Store) -> list[str]:
    """A note on the lines that do not fit into the context, if there are any."""
    if store.kind != "lines":
        return []
    lengths = [split.offsets[1:] - split.offsets[:-1] for split in (store.train, store.val)]
    long = sum(int((length > config.context).sum()) for length in lengths)
    total = sum(len(length) for length in lengths)
    if not long:
        return []
    return [f"{long:,} of {total:,} lines are longer than the context of {config.context}: cut into pieces"]
