"""The sides of the split: as the examples were published, as --val-data and --test-data name them, or held out."""

from collections.abc import Callable, Sequence

from data.errors import UserError, warn
from data.examples import SIDES, normalised, split_examples
from finetune.options import Examples

HELD_OUT = 0.1  # of the examples, for each side that was not published


def published_sides(text: Examples, own: dict[str, list], read: Callable[[str], dict[str, list]]) -> dict[str, list]:
    """The examples by side, 'train' and those that were published: `own`, what `--data` holds, with the files of
    `--val-data` and `--test-data`: of what `read` returns for each, by side, the same side, or all there is.

    Raises UserError where one has a split without that side."""
    sides = dict(own)
    for side, named in (("val", text.val_data), ("test", text.test_data)):
        if named is None:
            continue
        if side in own:
            warn(f"--{side}-data takes the place of the {len(own[side]):,} {side} examples of {text.data}")
        found = read(named)
        if side not in found and len(found) > 1:
            raise UserError(f"{named} has no {side} examples, but {' and '.join(found)}; name one of its files")
        sides[side] = found[side] if side in found else found["train"]
    return {side: sides[side] for side in SIDES if side in sides}


def split(text: Examples, published: dict[str, list], drop: Callable[[Sequence], list]) -> dict[str, list]:
    """All three sides. Those that were not `published` are held out of 'train', a tenth each. `drop` leaves out copies
    that say the same. Warns of duplicates, within a side and across them; `--duplicates` says what becomes of them.

    An example has a `text`, a `label` and, for messages, a `where`."""
    sides, dropping = {}, text.duplicates == "drop"
    alone = len(published) == 1
    for side, examples in published.items():
        distinct = drop(examples)
        if repeats := len(examples) - len(distinct):
            kept = "kept, all copies on one side of the split" if alone else "kept"
            of = f"{len(examples):,}" if alone else f"{len(examples):,} {side}"
            warn(f"{repeats:,} of {of} examples are duplicates: {'dropped' if dropping else kept}")
        sides[side] = distinct if dropping else examples
    sides = _apart(sides, dropping)
    fractions = (0.0 if "val" in sides else HELD_OUT, 0.0 if "test" in sides else HELD_OUT)
    if any(fractions):
        held_out = split_examples(sides["train"], text.split_seed, fractions)
        sides |= {side: held_out[side] for side in SIDES if side == "train" or side not in sides}
    return {side: sides[side] for side in SIDES}


def _apart(sides: dict[str, list], dropping: bool) -> dict[str, list]:
    """The sides; where `dropping`, without texts that are on a later one too. Warns of these texts."""
    result: dict[str, list] = {}
    for side in reversed([side for side in SIDES if side in sides]):
        kept = sides[side]
        for later, others in result.items():
            elsewhere = {normalised(e.text): e.where for e in reversed(others)}
            shared = [e for e in kept if normalised(e.text) in elsewhere]
            if not shared:
                continue
            first = shared[0]
            what = f"left out of {side}" if dropping else "kept as they are; --duplicates drop leaves them out here"
            warn(
                f"{len(shared):,} of {len(kept):,} {side} examples have a text that is in {later} too (the first: "
                f"{first.where} and {elsewhere[normalised(first.text)]}): {what}"
            )
            if dropping:
                kept = [e for e in kept if normalised(e.text) not in elsewhere]
        if not kept:
            raise UserError(f"all {len(sides[side]):,} {side} examples are in {' and '.join(result)} too")
        result[side] = kept
    return result
