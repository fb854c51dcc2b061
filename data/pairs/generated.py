"""Pairs that are generated, by name: a function of a seed to the pairs of each side."""

from data.pairs import dates, reversal, transliteration

GENERATED = {"dates": dates.make, "reverse": reversal.make, "transliterate": transliteration.make}
