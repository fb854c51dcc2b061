"""Text in, batches out: sources, readers, tokenizers, the token store and the loaders. Knows no other floor."""
