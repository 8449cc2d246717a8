"""Compile every kernel in every variant to machine code, without a GPU: ``python -m gpu_calibrate.commands.cubins``.

NVRTC comes as a wheel (extra ``cubins``). ptxas says how many registers each kernel takes and whether any spill to
local memory. A table of registers is printed; a spill, or a source that does not compile, is an error (exit code 1).
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from gpu_calibrate.launches.kernels import (
    BLOCK_SIZES,
    DTYPES,
    FILES,
    HEAD_SIZES,
    KV_DTYPES,
    KernelError,
    KernelFile,
    nvrtc_options,
    source,
)

ARCHITECTURES = ("sm_80", "sm_90")
"""A100; H100 and H200."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel file under one set of macros for one architecture."""

    file: str
    arch: str
    defines: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.file} {self.arch} {' '.join(f'{name}={value}' for name, value in self.defines)}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What ptxas says of one entry point; bytes per thread."""

    entry: str
    registers: int
    stack_bytes: int
    spill_stores_bytes: int
    spill_loads_bytes: int

    @property
    def spills(self) -> bool:
        return bool(self.stack_bytes or self.spill_stores_bytes or self.spill_loads_bytes)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One compilation: the usage of each entry point, or what the compiler said against it."""

    variant: Variant
    usages: tuple[Usage, ...] = ()
    error: str = ""
    size_bytes: int = field(default=0, compare=False)


def variants_of(file: KernelFile, arch: str) -> Iterator[Variant]:
    """Every combination of the values that the file's macros may have."""
    values = {
        "HEAD_SIZE": HEAD_SIZES,
        "BLOCK_SIZE": BLOCK_SIZES,
        "DTYPE_BF16": range(len(DTYPES)),
        "KV_FP8": range(len(KV_DTYPES)),
    }
    names = [name for name in file.defines if name in values]
    for combination in itertools.product(*(values[name] for name in names)):
        defines = dict(zip(names, combination, strict=True))
        if "ROTARY_DIM" in file.defines:
            defines["ROTARY_DIM"] = defines["HEAD_SIZE"]
        yield Variant(file.name, arch, tuple(defines.items()))


def usages_of(log: str) -> tuple[Usage, ...]:
    """Read ptxas' verbose log.

    Raises:
        KernelError: an entry point is named without its figures (another format than known).
    """
    usages: list[Usage] = []
    entry, frame = "", None
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry, frame = match[1], None
        elif match := _FRAME.search(line):
            frame = match
        elif (match := _USED.search(line)) and entry:
            if frame is None:
                raise KernelError(f"ptxas' log names no stack frame for {entry}: {log[:500]}")
            usages.append(Usage(entry, int(match[1]), *(int(value) for value in frame.groups())))
            entry = ""
    if entry or not usages:
        raise KernelError(f"ptxas' log names no registers for {entry or 'any entry point'}: {log[:500]}")
    return tuple(usages)


def compile_variant(variant: Variant) -> Outcome:
    """Machine code for one variant, by NVRTC; no GPU and no CUDA header is needed."""
    from cuda.core import Program, ProgramOptions  # type: ignore[import-not-found, import-untyped, unused-ignore]

    defines = dict(variant.defines)
    nvrtc_options(variant.arch, defines)  # refuses what the loader would refuse
    options = ProgramOptions(
        std="c++17",
        arch=variant.arch,
        define_macro=[(name, str(value)) for name, value in variant.defines],
        ptxas_options=["-v"],
    )
    log = io.StringIO()
    try:
        cubin = Program(source(variant.file).text, "c++", options).compile("cubin", logs=log)
        return Outcome(variant, usages_of(log.getvalue()), size_bytes=len(cubin.code))
    except KernelError as error:
        return Outcome(variant, error=str(error))
    except Exception as error:  # NVRTC's own errors have no common class across versions of cuda.core
        return Outcome(variant, error=f"{type(error).__name__}: {error}")


def table(outcomes: Iterable[Outcome]) -> str:
    """Registers per thread: a row per entry point, architecture and head size, with the range over all other macros."""
    rows: dict[tuple[str, str, int], list[Usage]] = {}
    for outcome in outcomes:
        head_size = dict(outcome.variant.defines).get("HEAD_SIZE", 0)
        for usage in outcome.usages:
            rows.setdefault((usage.entry, outcome.variant.arch, head_size), []).append(usage)
    lines = [f"{'kernel':<28} {'arch':<7} {'head':>4} {'variants':>8} {'registers':>10} {'spills':>7}"]
    for (entry, arch, head_size), usages in rows.items():
        fewest, most = min(usage.registers for usage in usages), max(usage.registers for usage in usages)
        registers = str(most) if fewest == most else f"{fewest}-{most}"
        spills = sum(usage.spills for usage in usages)
        lines.append(f"{entry:<28} {arch:<7} {head_size or '':>4} {len(usages):>8} {registers:>10} {spills:>7}")
    return "\n".join(lines)


def problems(outcomes: Iterable[Outcome]) -> list[str]:
    """One line per variant that does not compile or spills."""
    found = []
    for outcome in outcomes:
        if outcome.error:
            found.append(f"{outcome.variant}: does not compile: {outcome.error}")
        found += [
            f"{outcome.variant}: {usage.entry} spills ({usage.stack_bytes} bytes of stack, {usage.spill_stores_bytes} "
            f"stored, {usage.spill_loads_bytes} loaded)"
            for usage in outcome.usages
            if usage.spills
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0 all compiled without spills, 1 not, 2 the wheels are missing."""
    parser = argparse.ArgumentParser(prog="python -m gpu_calibrate.commands.cubins", description=__doc__)
    parser.add_argument("--arch", action="append", help=f"architectures (default: {' '.join(ARCHITECTURES)})")
    parser.add_argument("--kernel", action="append", choices=list(FILES), help="kernel files (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    given = parser.parse_args(arguments)
    try:
        import cuda.core  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        print("NVRTC is not installed: pip install 'simrun-llm[cubins]'", file=sys.stderr)
        return 2
    variants = [
        variant
        for arch in given.arch or ARCHITECTURES
        for name in given.kernel or FILES
        for variant in variants_of(FILES[name], arch)
    ]
    with ProcessPoolExecutor(max(1, given.jobs)) as pool:
        outcomes = list(pool.map(compile_variant, variants, chunksize=4))
    print(table(outcomes))
    wrong = problems(outcomes)
    for line in wrong:
        print(line, file=sys.stderr)
    size = sum(outcome.size_bytes for outcome in outcomes)
    print(f"{len(outcomes)} variants, {size / 1e6:.1f} MB of machine code, {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
