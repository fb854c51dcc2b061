"""Configuration, model registry, the one training loop, evaluation, generation and run directories.

The three lines of a library user:

    from engine import load_run
    run = load_run("runs/transformer-names-1")
    print(run.generate("ma", num=3))
"""


def __getattr__(name: str):
    # Loaded when asked for: the command line's --help must not wait for torch.
    if name in ("load_run", "Run"):
        from engine import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'engine' has no attribute '{name}'")
