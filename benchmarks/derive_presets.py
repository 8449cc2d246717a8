"""Derive the workload presets of ``sim/workload/preset_tables.py`` from the public traces.

    python benchmarks/derive_presets.py DIRECTORY > sim/workload/preset_tables.py

DIRECTORY holds, as published (plain or gzip):

- ``AzureLLMInferenceTrace_conv.csv[.gz]``, from github.com/Azure/AzurePublicDataset (CC-BY-4.0)
- ``mooncake_fast25_conversation_trace.jsonl[.gz]``, FAST25-release/traces/conversation_trace.jsonl
  of github.com/kvcache-ai/Mooncake (Apache-2.0)
- ``sharegpt_val_10k_llama2_lengths.csv[.gz]``, lengths of 10,000 ShareGPT conversations in Llama-2
  tokens (num_prefill_tokens, num_decode_tokens; MIT)
- ``trace_stats.csv``, with mean, p50, p99, max of the Azure code trace, which is used where the
  trace itself is not at hand (columns trace, requests, rate_rps, iat_cv, {in,out}_{mean,p50,p99,max})

What is kept of a trace: quantiles of input and of output length, and how the two go together as the
share of each output decile among the requests of each input decile (a checkerboard copula), in
thousandths. stderr gets a table of how well draws from the tables reproduce the trace.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

GRID = (0, 0.002, 0.005, 0.01, *(round(0.025 * k, 3) for k in range(1, 40)), 0.985, 0.99, 0.995, 0.998, 0.999, 1)
DECILES = 10

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def open_trace(directory: Path, name: str) -> io.TextIOWrapper:
    """The trace file, plain or gzip."""
    path = directory / name
    if path.exists():
        return open(path, encoding="utf-8", newline="")
    return io.TextIOWrapper(gzip.open(directory / f"{name}.gz"), encoding="utf-8", newline="")


def read_columns(directory: Path, name: str, inputs: str, outputs: str, time: str | None) -> tuple[Ints, Ints, Floats]:
    """Input and output lengths and the instants in seconds (empty without a time column)."""
    with open_trace(directory, name) as stream:
        if ".jsonl" in name:
            rows = [json.loads(line) for line in stream if line.strip()]
        else:
            rows = list(csv.DictReader(stream))
    lengths = [np.array([int(row[column]) for row in rows], dtype=np.int64) for column in (inputs, outputs)]
    seconds: Floats = np.empty(0)
    if time == "TIMESTAMP":
        stamps = np.array([row[time] for row in rows], dtype="datetime64[ns]").astype(np.int64)
        seconds = (stamps - stamps[0]) / 1e9
    elif time is not None:
        seconds = np.array([row[time] for row in rows], dtype=np.float64) / 1e3
    return lengths[0], lengths[1], seconds


def quantiles(values: Ints) -> list[int]:
    """Tokens at the probabilities of GRID."""
    return [round(float(q)) for q in np.quantile(values, GRID)]


def coupling(inputs: Ints, outputs: Ints) -> list[list[int]]:
    """Row i: of the requests in input decile i, the share in each output decile, in thousandths.

    Ties are split in the order of the trace. Each row sums to 1000.
    """
    n = len(inputs)
    decile = [np.argsort(np.argsort(v, kind="stable"), kind="stable") * DECILES // n for v in (inputs, outputs)]
    counts = np.zeros((DECILES, DECILES))
    np.add.at(counts, (decile[0], decile[1]), 1.0)
    shares = counts / counts.sum(axis=1, keepdims=True) * 1000.0
    rounded = np.floor(shares).astype(int)
    for row, exact in zip(rounded, shares, strict=True):
        short = 1000 - int(row.sum())
        row[np.argsort(row - exact, kind="stable")[:short]] += 1
    return [[int(cell) for cell in row] for row in rounded]


def coarse_quantiles(mean: float, p50: float, p99: float, top: float) -> list[int]:
    """Tokens at the probabilities of GRID, through (0, 1), (0.5, p50), (0.99, p99), (1, max), with the right mean.

    Straight up to the median (the shape there is not known); above it t0 + (t1 - t0) * x**g with
    the one g, found by bisection, that gives the mean.
    """

    def table(g: float) -> Floats:
        p = np.array(GRID)
        low = 1.0 + (p50 - 1.0) * p / 0.5
        middle = p50 + (p99 - p50) * np.clip((p - 0.5) / 0.49, 0, 1) ** g
        tail = p99 + (top - p99) * np.clip((p - 0.99) / 0.01, 0, 1) ** g
        return np.where(p <= 0.5, low, np.where(p <= 0.99, middle, tail))

    below, above = 0.2, 20.0
    for _ in range(60):
        g = 0.5 * (below + above)
        if np.trapezoid(table(g), GRID) > mean:
            below = g
        else:
            above = g
    return [round(float(t)) for t in table(below)]


def dispersion(seconds: Floats, window_s: float) -> float:
    """Index of dispersion (variance / mean) of the arrivals in windows of this length."""
    counts = np.bincount((seconds // window_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())


def show_numbers(numbers: Sequence[float], indent: int = 8) -> str:
    """A tuple of numbers as source lines."""
    margin = " " * indent
    lines = textwrap.wrap(", ".join(f"{number:.10g}" for number in numbers), 100)
    return "(\n" + "".join(f"{margin}    {line}\n" for line in lines) + f"{margin})"


def show_preset(name: str, fields: dict[str, str]) -> str:
    """One entry of the module."""
    body = "".join(f"        {key}={value},\n" for key, value in fields.items())
    return f'    "{name}": PresetTable(\n{body}    ),\n'


def full_preset(name: str, inputs: Ints, outputs: Ints, extra: dict[str, str]) -> str:
    """The entry of a trace that is at hand."""
    report(name, inputs, outputs)
    rows = "".join(f"            {tuple(row)},\n" for row in coupling(inputs, outputs))
    return show_preset(
        name,
        {
            "requests": str(len(inputs)),
            **extra,
            "input_tokens": show_numbers(quantiles(inputs)),
            "output_tokens": show_numbers(quantiles(outputs)),
            "coupling": f"(\n{rows}        )",
        },
    )


def spearman(a: Ints, b: Ints) -> float:
    """Rank correlation, ties in their order."""
    ranks = [np.argsort(np.argsort(v, kind="stable")) for v in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def report(name: str, inputs: Ints, outputs: Ints) -> None:
    """On stderr: mean, p50, p99 and rank correlation of the trace and of a million draws from its tables."""
    gen = np.random.default_rng(0)
    u, v = gen.random(1_000_000), gen.random(1_000_000)
    cumulative = np.cumsum([[0, *row] for row in coupling(inputs, outputs)], axis=1) / 1000.0
    rank = np.empty_like(v)
    for decile in range(DECILES):
        rows = (u * DECILES).astype(int) == decile
        rank[rows] = np.interp(v[rows], cumulative[decile], np.linspace(0, 1, DECILES + 1))
    drawn = [np.rint(np.interp(p, GRID, quantiles(t))).astype(np.int64) for p, t in ((u, inputs), (rank, outputs))]
    for label, pair in (("trace", (inputs, outputs)), ("table", (drawn[0], drawn[1]))):
        cells = [f"{t.mean():9.1f} {np.median(t):8.0f} {np.quantile(t, 0.99):8.0f}" for t in pair]
        print(f"{name:22} {label}: in {cells[0]}  out {cells[1]}  rank corr {spearman(*pair):6.3f}", file=sys.stderr)


HEADER = '''"""Length and arrival tables of the presets. Written by ``benchmarks/derive_presets.py``: do not edit.

Sources and licences: ``presets.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PresetTable:
    """What is kept of a trace."""

    requests: int
    input_tokens: tuple[int, ...]
    """At PROBABILITIES."""
    output_tokens: tuple[int, ...]
    """At PROBABILITIES."""
    coupling: tuple[tuple[int, ...], ...] | None = None
    """``coupling[i][j]``: of the requests of input decile i, the share in output decile j, in
    thousandths. None = the two are drawn independently."""
    rate: float | None = None
    """Mean requests per second; None where the source has no arrivals."""
    cv: float = 1.0
    """Coefficient of variation of the gaps."""
    shared_prefix_tokens: int = 0
    """Every request of the trace opens with these same tokens."""


# fmt: off
PROBABILITIES: tuple[float, ...] = @GRID@

TABLES: dict[str, PresetTable] = {
'''


def main() -> None:
    """Print the module."""
    directory = Path(sys.argv[1])
    print(HEADER.replace("@GRID@", show_numbers(GRID, 0)), end="")
    inputs, outputs, seconds = read_columns(
        directory, "AzureLLMInferenceTrace_conv.csv", "ContextTokens", "GeneratedTokens", "TIMESTAMP"
    )
    gaps = np.diff(seconds)
    timing = {"rate": f"{1 / gaps.mean():.4g}", "cv": f"{gaps.std() / gaps.mean():.4g}"}
    print(full_preset("azure-conv-2023", inputs, outputs, timing), end="")

    with open_trace(directory, "trace_stats.csv") as stream:
        stats = next(row for row in csv.DictReader(stream) if row["trace"] == "azure_llm_2023_code")
    tables = {
        f"{side}put_tokens": show_numbers(
            coarse_quantiles(*(float(stats[f"{side}_{key}"]) for key in ("mean", "p50", "p99", "max")))
        )
        for side in ("in", "out")
    }
    fields = {"requests": stats["requests"], "rate": stats["rate_rps"], "cv": stats["iat_cv"], **tables}
    print(show_preset("azure-code-2023", fields), end="")

    inputs, outputs, seconds = read_columns(
        directory, "mooncake_fast25_conversation_trace.jsonl", "input_length", "output_length", "timestamp"
    )
    # The trace's clock ticks every 3 s, so its gaps say nothing; a renewal process of this cv has
    # the trace's dispersion of counts in 10 s windows in the long run.
    cv = dispersion(seconds, 10.0) ** 0.5
    timing = {"rate": f"{len(seconds) / seconds[-1]:.4g}", "cv": f"{cv:.3g}", "shared_prefix_tokens": "512"}
    print(full_preset("mooncake-conversation", inputs, outputs, timing), end="")

    inputs, outputs, _ = read_columns(
        directory, "sharegpt_val_10k_llama2_lengths.csv", "num_prefill_tokens", "num_decode_tokens", None
    )
    print(full_preset("sharegpt", inputs, outputs, {}), end="")
    print("}\n# fmt: on")


if __name__ == "__main__":
    main()
