"""Character language models, small and whole: what the installed package offers in Python.

    import charlm
    run = charlm.train(data="names", model="gru", steps=500)  # or charlm.load_run("runs/transformer-names-1")
    print(run.generate("ma", num=3))

The wheel has all other folders below this one (hatch_build.py).
"""

from typing import TYPE_CHECKING, Any

from data import program

if TYPE_CHECKING:
    from engine.library import train as train
    from engine.run.load import load_run as load_run
    from engine.run.run import Run as Run
    from engine.run.sampling import Sampling as Sampling

__all__ = ["Run", "Sampling", "load_run", "train"]


def __getattr__(name: str) -> Any:
    """Torch is loaded when one of these is asked for, and not for the help of a command."""
    if name == "__version__":
        return program.version()
    if name in __all__:
        import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'charlm' has no attribute '{name}'")
