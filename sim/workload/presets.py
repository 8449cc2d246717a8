"""Workloads that need no download: lengths and arrivals of public traces as compact tables.

| preset | source | licence |
|---|---|---|
| azure-conv-2023 | Azure LLM inference trace 2023, conversation (github.com/Azure/AzurePublicDataset) | CC-BY-4.0 |
| azure-code-2023 | the same, code | CC-BY-4.0 |
| mooncake-conversation | Mooncake FAST'25 conversation trace (github.com/kvcache-ai/Mooncake) | Apache-2.0 |
| sharegpt | lengths of 10,000 ShareGPT conversations in Llama-2 tokens | MIT |

A request is drawn as (input, output): the input from 49 quantiles, the output from 49 quantiles
given the input's decile (a checkerboard copula, so that the output's own distribution stays).
Draws against the trace (mean, p50, p99; rank correlation of input and output):

| preset | | input | output | corr |
|---|---|---|---|---|
| azure-conv-2023 | trace | 1155, 1020, 4142 | 211, 129, 601 | 0.073 |
| | table | 1159, 1020, 4159 | 212, 129, 601 | 0.065 |
| mooncake-conversation | trace | 12035, 6909, 85400 | 343, 350, 1119 | 0.072 |
| | table | 12126, 6905, 85776 | 343, 350, 1115 | 0.068 |
| sharegpt | trace | 246, 35, 2862 | 326, 286, 1000 | 0.138 |
| | table | 249, 35, 2872 | 326, 286, 1000 | 0.131 |

Limits. Arrivals are a gamma renewal process with the trace's mean rate and cv of the gaps: its
slower swings over the hour are not kept. ``azure-code-2023`` comes from the published mean, p50, p99
and max alone: the shape between them is an assumption, input and output are independent, and its
gamma arrivals (cv 13) are about 1.5 times as dispersed over 10 s as the trace's. The Mooncake
trace's clock ticks every 3 s, so the cv of its gaps is the one (1.45) that has the trace's
dispersion of counts over 10 s. Of its prefix sharing only the 512 tokens that open every
request are kept (the whole trace would find 37 % of its blocks in an unbounded cache): replay the
trace itself to study prefix caching. ``benchmarks/derive_presets.py`` derives the tables anew.
"""

from __future__ import annotations

import numpy as np

from sim.errors import Problem
from sim.scenario.messages import spelled_alike
from sim.scenario.schema import Arrival, GammaArrival, PrefixConfig
from sim.workload.lengths import to_tokens
from sim.workload.preset_tables import PROBABILITIES, TABLES, PresetTable
from sim.workload.table import IntColumn

PRESETS: tuple[str, ...] = tuple(TABLES)
"""Names of the presets."""

NOTES: dict[str, str] = {
    "azure-code-2023": "preset azure-code-2023 is coarse: drawn through the trace's published mean, p50, p99 and max",
    "mooncake-conversation": (
        "preset mooncake-conversation keeps only the 512 tokens that open every request of the trace's shared "
        "prefixes; replay the trace to study prefix caching"
    ),
}


def preset_problems(name: str, where: str) -> list[Problem]:
    """The name of a preset checked; empty if there is such a preset."""
    if name in TABLES:
        return []
    near = spelled_alike(name, PRESETS)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return [Problem(f"{where}.preset: there is no preset {name!r}{hint} (presets: {', '.join(PRESETS)})")]


def preset_table(name: str) -> PresetTable:
    """What is kept of the trace behind a preset."""
    return TABLES[name]


def preset_arrival(name: str) -> Arrival | None:
    """The preset's own arrivals; None where its source has none."""
    table = TABLES[name]
    return None if table.rate is None else GammaArrival(process="gamma", rate=table.rate, cv=table.cv)


def preset_prefix(name: str) -> PrefixConfig | None:
    """What all requests of the preset share; None if nothing."""
    tokens = TABLES[name].shared_prefix_tokens
    return PrefixConfig(groups=1, tokens=tokens) if tokens else None


def draw_preset_lengths(
    name: str, input_gen: np.random.Generator, output_gen: np.random.Generator, n: int
) -> tuple[IntColumn, IntColumn]:
    """Input and output lengths of ``n`` requests, with the trace's dependence between the two."""
    table = TABLES[name]
    input_rank, output_rank = input_gen.random(n), output_gen.random(n)
    if table.coupling is not None:
        deciles = len(table.coupling)
        decile = (input_rank * deciles).astype(np.int64)
        edges = np.linspace(0.0, 1.0, deciles + 1)
        for i, shares in enumerate(table.coupling):
            rows = decile == i
            output_rank[rows] = np.interp(output_rank[rows], np.cumsum((0, *shares)) / sum(shares), edges)
    return (
        to_tokens(np.interp(input_rank, PROBABILITIES, table.input_tokens)),
        to_tokens(np.interp(output_rank, PROBABILITIES, table.output_tokens)),
    )
