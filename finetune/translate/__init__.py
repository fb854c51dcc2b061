"""Translating: from a source text to a target text, by an encoder and a decoder."""
