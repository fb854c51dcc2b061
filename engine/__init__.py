"""Configuration, model registry, the one training loop, evaluation, generation and run directories.

The three lines of a library user:

    from engine import load_run, train
    run = train(data="names", model="gru", steps=500)  # or load_run("runs/transformer-names-1")
    print(run.generate("ma", num=3))
"""

import importlib


def __getattr__(name: str):
    # Loaded when asked for: the command line's --help must not wait for torch.
    modules = {"load_run": "run.load", "Run": "run.run", "Sampling": "run.generate", "train": "library"}
    if name in modules:
        return getattr(importlib.import_module(f"{__name__}.{modules[name]}"), name)
    raise AttributeError(f"module 'engine' has no attribute '{name}'")
