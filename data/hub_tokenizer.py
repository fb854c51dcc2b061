"""The tokenizer of a folder in the Hub's layout: which of ours splits a text as it does, and where its ids are."""

from pathlib import Path
from typing import NamedTuple

from data import gpt2
from data.bpe import BPETokenizer
from data.errors import UserError
from data.json_files import Whole, read_json
from data.merges import N_BYTES
from data.tokenizers import N_SPECIALS, SPECIALS, ByteTokenizer, CharTokenizer, Tokenizer

FILE = "tokenizer.json"
NOWHERE = -1
_ADDED = [{"id": Whole(), "content": str}]
SCHEMA = {
    "model": {"type?": (str, None), "vocab": dict, "merges?": (list, None)},
    "pre_tokenizer?": (dict, None), "normalizer?": (dict, None), "post_processor?": (dict, None),
    "added_tokens?": (_ADDED, None),
}  # fmt: skip
GPT2_END = "<|endoftext|>"  # what GPT-2 calls its <eos>
_BYTE_OF = {character: byte for byte, character in gpt2.WRITTEN.items()}


class HubVocabulary(NamedTuple):
    """A tokenizer, and for each of its ids the one that the folder's model has in its place (NOWHERE: it has none).
    `begins`: whether a text there begins with `<bos>`."""

    tokenizer: Tokenizer
    rows: list[int]
    begins: bool = False


def read(folder: Path, vocab_size: int, eos: int | None) -> HubVocabulary:
    """The vocabulary of a model of `vocab_size` ids, of which `eos` ends a text. Without a tokenizer.json it is
    GPT-2's, which the folder's merges.txt, or a download, has.

    Raises UserError where no tokenizer here splits a text as the folder's does."""
    path = folder / FILE
    if not path.is_file():
        if vocab_size < gpt2.VOCAB_SIZE:
            raise UserError(
                f"{folder} has {vocab_size} ids; GPT-2's vocabulary has {gpt2.VOCAB_SIZE}, and no {FILE} is there"
            )
        return _of_gpt2(gpt2.load(folder / "merges.txt"), vocab_size)
    found = _Reader(path).vocabulary(eos)
    if max(found.rows) >= vocab_size:
        raise UserError(f"{path} has the id {max(found.rows)}; the model has {vocab_size} ids")
    return found


def name_of(folder: Path, vocab_size: int, eos: int | None) -> tuple[str, bool]:
    """The name of that tokenizer as a flag has it, and whether texts begin with `<bos>`. Nothing is downloaded."""
    if not (folder / FILE).is_file():
        return gpt2.GPT2Tokenizer.name, False
    tokenizer, _, begins = read(folder, vocab_size, eos)
    is_learned = tokenizer.name == BPETokenizer.name
    return f"{tokenizer.name}:{tokenizer.vocab_size - N_SPECIALS}" if is_learned else tokenizer.name, begins


def _of_gpt2(tokenizer: gpt2.GPT2Tokenizer, vocab_size: int) -> HubVocabulary:
    """GPT-2's ids come first in every model of its vocabulary; behind them are our specials, or what is not used."""
    ours = vocab_size == tokenizer.vocab_size
    return HubVocabulary(
        tokenizer, [n if ours or n < gpt2.VOCAB_SIZE else NOWHERE for n in range(tokenizer.vocab_size)]
    )


class _Reader:
    """What one tokenizer.json says."""

    def __init__(self, path: Path):
        self.path, self.stored = path, read_json(path, SCHEMA)
        self.model, self.split = self.stored["model"], self.stored.get("pre_tokenizer") or {}
        self.ids: dict[str, int] = self.model["vocab"]
        if any(type(id_) is not int or id_ < 0 for id_ in self.ids.values()):
            raise UserError(f"{path} is damaged: an id in its vocab is no number")
        if self.stored.get("normalizer"):
            raise UserError(f"{path} changes texts before it splits them (normalizer), which no tokenizer here does")
        self.added = {each["content"]: each["id"] for each in self.stored.get("added_tokens") or []}

    def vocabulary(self, eos: int | None) -> HubVocabulary:
        kind, how = self.model.get("type") or "BPE", self.split.get("type")
        if kind == "WordLevel" and self.split.get("pattern") == {"Regex": r"[\s\S]"}:
            return self._characters(eos)
        if kind == "BPE" and how == "ByteLevel":
            return self._bytes(eos)
        raise UserError(
            f"{self.path} is of a kind ({kind}, {how}) that no tokenizer here is; byte-level BPE as GPT-2's, bytes "
            "and characters can be read"
        )

    def _characters(self, eos: int | None) -> HubVocabulary:
        letters = sorted((id_, text) for text, id_ in self.ids.items() if text not in self._specials(eos))
        if any(len(text) != 1 for _, text in letters):
            raise UserError(f"{self.path} is damaged: a token of several characters among single ones")
        tokenizer = CharTokenizer([text for _, text in letters], in_order=True)
        return self._with_specials(tokenizer, [id_ for id_, _ in letters], eos)

    def _bytes(self, eos: int | None) -> HubVocabulary:
        odd = {"add_prefix_space": self.split.get("add_prefix_space", True)}
        odd |= {name: self.model.get(name) for name in ("byte_fallback", "ignore_merges", "dropout")}
        if wrong := [name for name, value in odd.items() if value]:
            raise UserError(f"{self.path}: {wrong[0]} is {odd[wrong[0]]!r}, which no tokenizer here does")
        single = sorted((id_, text) for text, id_ in self.ids.items() if len(text) == 1 and text in _BYTE_OF)
        merges = [each.split(" ") if isinstance(each, str) else each for each in self.model.get("merges") or []]
        try:
            texts = [text for _, text in single] + [left + right for left, right in merges]
            tokens = [bytes(_BYTE_OF[character] for character in text) for text in texts]
            rows = [self.ids[text] for text in texts]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path} is damaged: a merge is no pair of tokens ({error})") from error
        if not merges and not self.split.get("use_regex", True) and len(tokens) == N_BYTES:
            by_byte = sorted(zip(tokens, rows, strict=True))
            return self._with_specials(ByteTokenizer(), [row for _, row in by_byte], eos)
        if len(tokens) == gpt2.N_TOKENS and rows == [*range(gpt2.N_TOKENS)]:
            tokenizer = gpt2.GPT2Tokenizer(tokens)
            named = {id_: self.added.get(name, NOWHERE) for name, id_ in tokenizer.specials.items()}
            behind = [named[n] for n in range(gpt2.VOCAB_SIZE, tokenizer.vocab_size)]
            return HubVocabulary(tokenizer, [*range(gpt2.VOCAB_SIZE), *behind], self._begins())
        return self._with_specials(BPETokenizer(tokens), rows, eos)

    def _with_specials(self, tokenizer: Tokenizer, rows: list[int], eos: int | None) -> HubVocabulary:
        """The ids of our six specials, by their names there, before those of the tokens."""
        named = self._specials(eos)
        special = [named.get(name, NOWHERE) for name in SPECIALS]
        return HubVocabulary(tokenizer, [*special, *rows], self._begins())

    def _specials(self, eos: int | None) -> dict[str, int]:
        found = {name: self.added[name] for name in SPECIALS if name in self.added}
        end = self.added.get(GPT2_END, eos)
        return found if end is None else {SPECIALS[2]: end} | found

    def _begins(self) -> bool:
        """Whether a text begins with `<bos>`."""
        single = (self.stored.get("post_processor") or {}).get("single") or [None]
        return isinstance(single, list) and single[0] == {"SpecialToken": {"id": SPECIALS[1], "type_id": 0}}
