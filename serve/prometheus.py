"""What the workers have done, in Prometheus' text format."""

from serve.served import Served

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTERS = {
    "requests": "requests that were accepted",
    "refused": "requests that found the queue full",
    "cancelled": "texts whose client has left",
    "failures": "times that a worker failed and was started again",
    "prompt_tokens": "tokens of prompts",
    "tokens": "tokens that were drawn",
    "steps": "steps, each a token of every text that is drawn",
}
GAUGES = {"waiting": "texts in the queue", "drawing": "texts that are being drawn"}


def text(served: list[Served]) -> str:
    """All of it."""
    lines = []
    for name, meaning in COUNTERS.items():
        lines += [f"# HELP charlm_{name}_total {meaning}", f"# TYPE charlm_{name}_total counter"]
        lines += [f"charlm_{name}_total{_label(each)} {getattr(each.worker.counts, name)}" for each in served]
    for name, meaning in GAUGES.items():
        lines += [f"# HELP charlm_{name} {meaning}", f"# TYPE charlm_{name} gauge"]
        lines += [f"charlm_{name}{_label(each)} {getattr(each.worker, name)}" for each in served]
    return "\n".join(lines) + "\n"


def _label(served: Served) -> str:
    name = served.name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{model="{name}"}}'
