"""A run's text: which store it is, its context, and the loader that deals its batches."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data.batches import Batch, longest_line
from data.errors import UserError, warn
from data.eval_batches import eval_batches
from data.loaders import LaneLoader, LineLoader, Loader, StreamLoader
from data.masking import Masking
from data.prepare import key_of, open_or_discard, prepare
from data.sources import cache_folder, data_set
from data.store import ROWS, Store
from data.tokenizers import Tokenizer
from engine.config import presets
from engine.config.sections import Config
from engine.config.settings import marked, replace
from engine.run.folder import COMPUTES_ORDER, FORMAT
from makemore.config import Mark


def prepare_text(config: Config, vocabulary: Tokenizer | None, extend: bool = False) -> Store:
    """The text that `config` names, with an existing `vocabulary`, perhaps extended, or one of its own."""
    return prepare(config.text.data, **_how(config), vocabulary=vocabulary, extend=extend)


def store_of_run(
    config: Config, facts: dict[str, Any], tokenizer: Tokenizer, explicit: frozenset[str] | set[str] = frozenset()
) -> Store:
    """The text of a run: prepared already, or prepared again and then checked to be the same; from where `config` says
    it lies now, when that is `explicit`. Warns where the text is no longer the one that was prepared."""
    if not explicit & marked(Config, Mark.PLACE):
        kept = open_or_discard(cache_folder() / "prepared" / facts["data"]["folder"])
        if kept and kept.key == facts["data"]["key"]:
            _warn_if_edited(config, kept, tokenizer)
            return kept
    try:
        store = prepare_text(config, _given(config, tokenizer))
    except UserError as error:
        raise UserError(f"{error} (the text of this run; where it has moved, --data says where it is)") from error
    if store.key != facts["data"]["key"]:
        listed = config.text.data if isinstance(config.text.data, str) else ", ".join(config.text.data)
        moved = explicit & marked(Config, Mark.PLACE)
        is_other = "is not the one the run began with" if moved else "has changed since the run began"
        raise UserError(
            f"the text of {listed} {is_other}, or this version prepares it in another way; "
            f"start a new run with --init {config.run.out}"
        )
    return store


def _warn_if_edited(config: Config, store: Store, tokenizer: Tokenizer) -> None:
    """Say so where the text of a run has changed since it was prepared."""
    names = [config.text.data] if isinstance(config.text.data, str) else config.text.data
    if any(data_set(name) or name == "-" for name in names):
        return
    try:
        key = key_of(config.text.data, **_how(config), vocabulary=_given(config, tokenizer))
    except UserError:
        return
    if key != store.key:
        warn(f"{', '.join(names)} has changed since the run began; the run goes on with the text as it was")


def _given(config: Config, tokenizer: Tokenizer) -> Tokenizer | None:
    """The vocabulary of a run, where it was another run's before; None where it follows from the text."""
    return tokenizer if config.run.init or config.run.teacher else None


def _how(config: Config) -> dict[str, Any]:
    """How the text of a run is read, besides where it lies."""
    return {
        "val_data": config.text.val_data, "kind": config.text.kind, "separator": config.text.separator,
        "text_column": config.text.text_column, "column": config.text.column, "bins": config.text.bins,
        "tokenizer": config.text.tokenizer, "encoding": config.text.encoding, "bpe_sample": config.text.bpe_sample,
    }  # fmt: skip


def with_context(config: Config, store: Store) -> Config:
    """Lines and documents without a given context get one that holds the longest, within reason; everything else has
    one."""
    context = config.net.context or presets.STREAM_CONTEXT
    if config.net.context is None and store.kind in ROWS:
        most = presets.LINES_CONTEXT if store.kind == "lines" else presets.STREAM_CONTEXT
        context = min(max(longest_line(store.train), longest_line(store.val)), most)
    return replace(config, kind=store.kind, context=context)


def make_loader(config: Config, store: Store, run_format: int = FORMAT) -> Loader:
    """The training batches of `config`, of a run of this format. Raises UserError for a text that is too short for
    them."""
    carries_state = getattr(config.net, "carry_state", False)
    if carries_state and store.kind in ROWS:
        raise UserError(
            f"--carry-state is for streams: {store.kind} do not go on from one to the next; use --kind stream"
        )
    kind = LaneLoader if carries_state else LineLoader if store.kind in ROWS else StreamLoader
    sizes = (config.net.context, config.optim.batch_size, config.run.seed)
    loader: Loader = kind(store.train, *sizes, run_format >= COMPUTES_ORDER)
    loader.masking = masking_of(config, store)
    return loader


def validation_batches(config: Config, store: Store, history: int) -> Callable[[], Iterator[Batch]]:
    """The fixed batches of the validation text. `history`: as in `eval_batches`."""
    batches = eval_batches(store.val, config.net.context, config.text.eval_tokens, history)
    masking = masking_of(config, store)
    return batches if masking is None else lambda: masking.of_evaluation(batches())


def masking_of(config: Config, store: Store) -> Masking | None:
    """What hides a part of each batch under --objective masked; None for another objective."""
    net = config.net
    if not getattr(net, "fills", False):
        return None
    return Masking(net.mask_rate, net.mask_span, config.run.seed, store.tokenizer.special, store.kind in ROWS)


def long_lines(config: Config, store: Store) -> list[str]:
    """A note on the lines or documents that do not fit into the context, if there are any."""
    if store.kind not in ROWS:
        return []
    lengths = [np.diff(split.offsets) for split in (store.train, store.val) if split.offsets is not None]
    long = sum(int((length > config.net.context).sum()) for length in lengths)
    total = sum(len(length) for length in lengths)
    if not long:
        return []
    return [f"{long:,} of {total:,} {store.kind} are longer than the context of {config.net.context}: cut into pieces"]
