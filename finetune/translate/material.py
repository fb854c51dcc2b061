"""What a run of `finetune.translate` learns from: pairs of texts on their sides, and their rows of tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.errors import UserError, warn
from data.examples import normalised
from data.json_files import content_key
from data.pairs.files import read_pairs
from data.pairs.generated import GENERATED
from data.pairs.pair import TextPair
from data.pairs.spans import WAYS, hidden, read_texts
from data.rows import Row
from data.tokenizers import Tokenizer
from finetune.sides import published_sides, split
from finetune.task import check_unknown, warn_if_few
from finetune.translate.options import TranslateConfig

LONGEST = 256  # tokens of a source or a target unless --context says otherwise


@dataclasses.dataclass
class Material:
    """The pairs on the sides of the split, and what a run keeps of them."""

    name: str
    sides: dict[str, list[TextPair]]

    @property
    def key(self) -> str:
        return content_key({side: [(p.text, p.target) for p in pairs] for side, pairs in self.sides.items()})

    def texts(self, side: str) -> list[str]:
        """All sources and targets of a side."""
        return [text for pair in self.sides[side] for text in (pair.text, pair.target)]


@dataclasses.dataclass
class TranslateData:
    """All that a run has in memory of its pairs. `sides` are the pairs that fit into the context, one a row."""

    material: Material
    tokenizer: Tokenizer
    sides: dict[str, list[TextPair]]
    rows: dict[str, list[Row]]

    @property
    def about(self) -> dict[str, str]:
        """What a run says of its pairs."""
        return {"key": self.material.key, "folder": "", "name": self.material.name, "start": ""}

    @property
    def what(self) -> str:
        """The pairs in words."""
        return f"{self.material.name}: " + ", ".join(f"{len(pairs):,} {side}" for side, pairs in self.sides.items())


def read_material(config: TranslateConfig) -> Material:
    """The pairs of `config`, split. Warns of duplicates."""
    text = config.text
    if text.data in GENERATED:
        return Material(text.data, GENERATED[text.data](text.split_seed))
    if text.spans:
        return _of_spans(config)
    name, pairs = read_pairs(text.data, text.encoding)
    published = published_sides(text, {"train": pairs}, lambda data: {"train": read_pairs(data, text.encoding)[1]})
    return Material(name, split(text, published, drop_duplicates))


def _of_spans(config: TranslateConfig) -> Material:
    """The pairs of a text without translations: a text is on one side, whatever is hidden of it."""
    text = config.text
    name, texts = read_texts(text.data, text.encoding)
    published = published_sides(text, {"train": texts}, lambda data: {"train": read_texts(data, text.encoding)[1]})
    sides = split(text, published, drop_duplicates)
    ways = {"train": WAYS}
    return Material(name, {side: hidden(sides[side], text.split_seed, ways.get(side, 1)) for side in sides})


def read_all(config: TranslateConfig) -> tuple[str, list[TextPair]]:
    """The short name of `--data` and all that is in the file; of generated pairs the test side."""
    if config.text.data in GENERATED:
        return config.text.data, read_material(config).sides["test"]
    return read_pairs(config.text.data, config.text.encoding)


def drop_duplicates(pairs: Sequence[TextPair]) -> list[TextPair]:
    """The pairs without later copies of the same source and target."""
    return [*{(normalised(pair.text), normalised(pair.target)): pair for pair in reversed(pairs)}.values()][::-1]


def longest(material: Material, tokenizer: Tokenizer) -> int:
    """The tokens of the longest text, its end included, at most LONGEST."""
    texts = (text for side in material.sides for text in material.texts(side))
    return min(LONGEST, 1 + max(len(tokenizer.encode(text, "mask")) for text in texts))


def encode_sides(material: Material, tokenizer: Tokenizer, config: TranslateConfig) -> TranslateData:
    """The rows of each side. Warns of pairs that do not fit; UserError where none does."""
    sides, rows = {}, {}
    for side, pairs in material.sides.items():
        sides[side], rows[side] = encode(pairs, tokenizer, config, side)
        warn_if_few(len(rows[side]), side)
    return TranslateData(material, tokenizer, sides, rows)


def encode(
    pairs: list[TextPair], tokenizer: Tokenizer, config: TranslateConfig, side: str
) -> tuple[list[TextPair], list[Row]]:
    """The pairs of which neither text is longer than the context, and their rows. Warns of the others, and of
    characters that the vocabulary lacks."""
    every = [(pair, row_of(pair, tokenizer)) for pair in pairs]
    context = config.net.context
    assert context is not None  # settled
    fit = [(pair, row) for pair, row in every if max(len(row.tokens), row.size - len(row.tokens)) <= context]
    if left_out := len(every) - len(fit):
        what = f"{left_out:,} of {len(every):,} {side} pairs have a text longer than the context of {context} tokens"
        if not fit:
            raise UserError(f"{what}: none is left; raise --context")
        warn(f"{what}: left out; raise --context to keep them")
    unknown = sum(_unknown(pair.text, tokenizer) + _unknown(pair.target, tokenizer) for pair, _ in fit)
    check_unknown(unknown, (text for pair in pairs for text in (pair.text, pair.target)), side, config, tokenizer)
    return [pair for pair, _ in fit], [row for _, row in fit]


def row_of(pair: TextPair, tokenizer: Tokenizer) -> Row:
    """The source as prefix; `<bos>` and the target as tokens, of which each predicts the next, the last one `<eos>`."""
    target = tokenizer.encode(pair.target, "mask").astype(np.int64)
    bos, eos = tokenizer.special.bos, tokenizer.special.eos
    return Row(np.append(bos, target), np.append(target, eos), prefix=source_ids(pair.text, tokenizer))


def _unknown(text: str, tokenizer: Tokenizer) -> int:
    """How many characters of a text the vocabulary lacks."""
    return int((tokenizer.encode(text, "mask") == tokenizer.special.unk).sum())


def source_ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a source, `<eos>` after them, (S,)."""
    return np.append(tokenizer.encode(text, "mask").astype(np.int64), tokenizer.special.eos)
