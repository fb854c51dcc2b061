"""The experiments of docs/articles/17-kernels.md."""

from docs.experiments import Experiment, Picture

EXPERIMENTS = [
    Experiment(
        "kernels-check",
        "TRITON_INTERPRET=1 python -m kernels --check",
        r"^largest difference of Triton: (\S+)",
        0,
        1e-5,
        unit="of the largest element",
    ),
]
PICTURES = [Picture("mask_tiles")]
