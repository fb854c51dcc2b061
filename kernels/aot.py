"""Compile every kernel in every shape of tile for GPUs that are not here, and check what it uses.

    python -m kernels.aot [--targets sm80 sm90 hip] [--only attention] [--ends]

The interpreter accepts what a GPU refuses: tiles that fit no shared memory, registers that spill, tensor-core
instructions that wait for each other. The compilers that come with Triton say so without a GPU. Exit code 1 when a
kernel takes too much shared memory, spills more than 64 bytes a thread, or has serialized wgmma.
"""

import argparse
import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch

MAX_SPILL = 64  # bytes a thread
MAX_SHARED = {"sm80": 166_912, "sm90": 232_448, "hip": 65_536}  # bytes a program: A100, H100 and H200, MI300
ODD_SIZES = (40, 72, 80, 100)  # no power of two: part of a tile is empty
# Attention of these padded head sizes has the tiles that were the fastest on an H200, those without complaints among
# them: it may spill, and wait.
MEASURED = {("dkv_kernel", "sm90", torch.bfloat16, size) for size in (64, 128)}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


class Case(NamedTuple):
    """One kernel to compile: its module, name and compile-time arguments, and what run time sees in the others.

    It makes an int of 1 a constant, and knows of ints and pointers whether 16 divides them (not of an int without a
    value here), except where a kernel does not specialise on an int."""

    module: str
    kernel: str
    target: str
    dtype: torch.dtype
    constants: tuple[tuple[str, object], ...]
    note: str
    ints: tuple[tuple[str, int], ...] = ()
    aligned: bool = True  # the pointers


class Usage(NamedTuple):
    """What a compiled kernel uses: bytes of shared memory, registers, bytes spilled, complaints of the compiler."""

    shared: int
    registers: int
    spilled: int
    serialized: bool


def cases(targets: list[str], only: str = "", ends: bool = False) -> Iterator[Case]:
    """Every kernel with every shape of tile and what can be asked of it, without repeats. `ends`: without options, and
    with all of them, but no option alone; of attention causal, and full."""
    for target in targets:
        for name, found in (
            ("attention", _attention(target, ends)),
            ("norm", _norm(target)),
            ("cross_entropy", _cross_entropy(target, ends)),
        ):
            if only in name:
                yield from {case._replace(note=""): case for case in found}.values()


def _attention(target: str, ends: bool) -> Iterator[Case]:
    from kernels.attention.call import Call
    from kernels.attention.launch import combine_constants, constants
    from kernels.attention.tiles import SMALL_HEADS

    given = torch.zeros(1)  # only whether a tensor is there matters
    options: dict[str, dict[str, Any]] = {
        "window": {"left": 7},
        "look-ahead": {"right": 3},
        "ALiBi": {"slopes": given},
        "cap": {"softcap": 50.0},
        "key mask": {"key_mask": given},
        "dropout": {"dropout": 0.5, "seed": given},
        "packed": {"starts_q": given, "starts_k": given},
    }
    chosen = [(), *((name,) for name in options)]  # each alone, and all that go together
    alls = [tuple(name for name in options if name != without) for without in ("packed", "key mask")]
    plain = Call(None, None, 1.0, 0.0, 0.0, None, None, None, None, None, 0, 0)
    sizes = [(size, "plain") for size in (16, 32, 64, 128, *(ODD_SIZES[:2] if ends else ODD_SIZES))]
    if target == "sm90" and not ends:
        sizes += itertools.product((16, 32), SMALL_HEADS[1:])
    for kernel, dtype, (size, way), names, causal in itertools.product(
        ("forward", "decode", "dq", "dkv"), (torch.bfloat16, torch.float32), sizes, chosen + alls, (True, False)
    ):
        is_end = (causal and not names) or (not causal and names in alls)
        if (ends or size in ODD_SIZES or way != "plain" or kernel == "decode") and not is_end:
            continue
        if ends and names == alls[size not in ODD_SIZES and kernel != "decode"]:  # one of the two will do
            continue
        if (causal and "look-ahead" in names) or (kernel == "decode" and "packed" in names):
            continue
        call = plain._replace(right=0 if causal else None)
        for name in names:
            call = call._replace(**options[name])
        note = f"head size {size} {way}, {', '.join(('causal' if causal else 'full', *names))}"
        settings = constants(kernel, size, dtype, target, call, way)
        if kernel in ("forward", "decode"):
            settings["SPLIT"] = kernel == "decode"
        for has_dlse in (False, True) if kernel == "dq" and is_end and not ends else (bool(names),):
            if kernel == "dq":
                settings["HAS_DLSE"] = has_dlse
            file = "backward" if kernel in ("dq", "dkv") else "forward"
            name = "forward" if kernel == "decode" else kernel
            yield Case(f"attention.{file}", f"{name}_kernel", target, dtype, _frozen(settings), note)
    for dtype, size in itertools.product((torch.bfloat16, torch.float32), (16, 32, 64, 128, *ODD_SIZES)):
        settings = combine_constants(size, dtype)
        yield Case("attention.forward", "combine_kernel", target, dtype, _frozen(settings), f"head size {size}")


def _norm(target: str) -> Iterator[Case]:
    import triton.language as tl

    from kernels.norm.launch import ONE_TILE, ROUNDED, tiles

    widths = (*(2**i for i in range(ONE_TILE.bit_length())), 65536)  # each size of tile, and a row wider than any
    for width, rms, dtype in itertools.product(widths, (False, True), (torch.bfloat16, torch.float32)):
        for kernel in ("forward", "backward") if width <= ONE_TILE else ("forward", "wide_rows", "wide_weights"):
            rows, block_c, num_warps, stages = tiles(kernel, width, target)
            settings = {
                "ROWS": rows, "BLOCK_C": block_c, "STAGES": stages, "RMS": rms, "HAS_W": True, "HAS_B": not rms,
                "HAS_R": True, "HAS_S": True, "WIDE": width > ONE_TILE, "ACC": tl.float32, "num_warps": num_warps,
                **ROUNDED,
            }  # fmt: skip
            note = f"width {width}, {'rms' if rms else 'layer'}"
            case = Case("norm.kernel", f"{kernel}_kernel", target, dtype, _frozen(settings), note)
            yield case
            if width in (1, 64, 1024, ONE_TILE, 65536):
                yield case._replace(ints=(("C", width),), note=f"{note}, C known")
                yield case._replace(aligned=False, note=f"{note}, off by an element")


def _cross_entropy(target: str, ends: bool) -> Iterator[Case]:
    import triton.language as tl

    from kernels.cross_entropy.kernel import tiles

    options = ("SMOOTH", "Z_LOSS", "CAPPED")
    for kernel, vocabulary, dtype in itertools.product(
        ("loss", "gradient"), (*(2**i for i in range(13)), 50257), (torch.bfloat16, torch.float32)
    ):
        rows, block_v, num_warps = tiles(vocabulary, target)
        settings = {"ROWS": rows, "BLOCK_V": block_v, "ACC": tl.float32, "num_warps": num_warps}
        sizes = {"vocabulary": vocabulary, "stride": vocabulary, "gradient_stride": vocabulary}
        for chosen in ((), options, *(() if ends else ((name,) for name in options))):
            if kernel == "gradient" and chosen == ("SMOOTH",):
                continue  # always there
            flags = {name: name in chosen for name in options if kernel == "loss" or name != "SMOOTH"}
            note = ", ".join((f"vocabulary {vocabulary}", *chosen))
            case = Case("cross_entropy.kernel", f"{kernel}_kernel", target, dtype, _frozen(settings | flags), note)
            yield case._replace(ints=_frozen(sizes))
            if vocabulary in (1, 128, 4096, 50257) and len(chosen) != 1:
                yield case._replace(aligned=False, note=f"{note}, off by an element")
                apart = sizes | {"stride": -(-vocabulary // 64) * 64, "gradient_stride": -(-vocabulary // 64) * 64}
                yield case._replace(ints=_frozen(apart), note=f"{note}, rows 64 apart")
                yield case._replace(ints=_frozen(sizes | {"stride": 1}), note=f"{note}, stride 1")


def _frozen(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(settings.items()))


# Pointers that are not to the tensors of the case's dtype.
_TYPES = {
    "STARTS_Q": "*i32", "STARTS_K": "*i32", "SEED": "*i64", "TARGETS": "*i64", "SLOPES": "*fp32", "LSE": "*fp32",
    "DLSE": "*fp32", "ROW_MAX": "*fp32", "INV_SUM": "*fp32", "DELTA": "*fp32", "MEAN": "*fp32", "RSTD": "*fp32",
    "LOSS": "*fp32", "UPSTREAM": "*fp32", "DW": "*fp32", "DB": "*fp32", "KEY_MASK": "*i8", "PART": "*fp32",
    "PART_MAX": "*fp32", "PART_INV": "*fp32",
    "scale": "fp32", "keep_scale": "fp32", "eps": "fp32", "smoothing": "fp32", "cap": "fp32", "z_loss": "fp32",
    "softcap": "fp32",
}  # fmt: skip
_SIZES = {"H", "GROUP", "C"}


def compile_case(case: Case) -> Usage:
    """Compile one case. Raises what the compiler raises."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    chip = {"sm80": ("cuda", 80, 32), "sm90": ("cuda", 90, 32), "hip": ("hip", "gfx942", 64)}[case.target]
    function = getattr(importlib.import_module(f"{__package__}.{case.module}"), case.kernel)
    settings = dict(case.constants)
    options = {name: settings[name] for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in settings}
    names, ints = function.arg_names, dict(case.ints)
    constants = {name: value for name, value in settings.items() if name in names}
    for parameter in function.params:
        if not parameter.do_not_specialize and ints.get(parameter.name) == 1:
            constants[parameter.name] = 1
    signature, divisible = {}, {}
    for i, parameter in enumerate(function.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        is_pointer = name.isupper() and name not in _SIZES
        signature[name] = _TYPES.get(name, POINTERS[case.dtype] if is_pointer else "i32")
        if name == "OUT" and settings.get("SPLIT"):
            signature[name] = "*fp32"
        is_known = not parameter.do_not_specialize and name in ints and ints[name] % 16 == 0
        if is_known or (is_pointer and case.aligned):
            divisible[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=divisible)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget(*chip), options=options)
    if case.target == "hip":
        text = compiled.asm["amdgcn"]
        spilled = max(map(int, re.findall(r"\.private_segment_fixed_size: +(\d+)", text)))
        registers = max(map(int, re.findall(r"\.vgpr_count: +(\d+)", text)))
        return Usage(compiled.metadata.shared, registers, spilled, False)
    text = log.getvalue()
    spilled = max(map(int, re.findall(r"(\d+) bytes spill stores", text)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", text)))
    return Usage(compiled.metadata.shared, registers, spilled, "wgmma" in text and "serialized" in text)


def complaints(case: Case, usage: Usage) -> list[str]:
    """What is wrong with a compiled kernel; empty when nothing is."""
    wrong = []
    if usage.shared > MAX_SHARED[case.target]:
        wrong.append(f"{usage.shared} B of shared memory, {MAX_SHARED[case.target]} there are")
    if is_measured(case):
        return wrong
    if usage.spilled > MAX_SPILL:
        wrong.append(f"{usage.spilled} B spilled, {MAX_SPILL} may be")
    if usage.serialized:
        wrong.append("wgmma serialized")
    return wrong


def is_measured(case: Case) -> bool:
    """Whether a case is one of MEASURED, of attention without options besides the causal mask."""
    settings = dict(case.constants)
    options = ("LEFT", "RIGHT", "KEYED", "ALIBI", "CAPPED", "DROPOUT", "VARLEN")
    plain = not any(settings.get(option) for option in options)
    return plain and (case.kernel, case.target, case.dtype, settings.get("BLOCK_D")) in MEASURED


def _attempt(case: Case) -> tuple[Case, Usage | None, list[str]]:
    try:
        usage = compile_case(case)
    except Exception as error:  # whatever a compiler raises is the finding
        return (
            case,
            None,
            [f"does not compile: {str(error).strip().splitlines()[-1] if str(error).strip() else error!r}"],
        )
    return case, usage, complaints(case, usage)


def _prepare(cache: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache
    torch.set_num_threads(1)
    import triton

    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True  # a cached kernel comes without the compiler's remarks


def _line(case: Case, usage: Usage | None, wrong: list[str]) -> str:
    kind = str(case.dtype).removeprefix("torch.")
    name = f"{case.module.split('.')[0]}.{case.kernel.removesuffix('_kernel')}"
    used = "" if usage is None else f"{usage.shared} B shared, {usage.registers} registers, {usage.spilled} B spilled"
    return "; ".join(filter(None, (f"{case.target} {name} {kind} {case.note}", used, ", ".join(wrong))))


def main() -> int:
    """Compile all, a line each; the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(MAX_SHARED), choices=list(MAX_SHARED))
    parser.add_argument("--only", default="", help="part of an operation's name: attention, norm, cross_entropy")
    parser.add_argument("--ends", action="store_true", help="without options, and with all of them; no option alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    todo = list(cases(args.targets, args.only, args.ends))
    failed = 0
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(args.jobs, initializer=_prepare, initargs=(cache,)) as pool,
    ):
        for case, usage, wrong in pool.map(_attempt, todo, chunksize=4):
            print(_line(case, usage, wrong), flush=True)
            failed += bool(wrong)
    print(f"{len(todo)} kernels compiled, {failed} with complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is set: ignored, nothing runs here", file=sys.stderr)
    sys.exit(main())
