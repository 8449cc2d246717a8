"""Whole runs of small hand-made workloads, with the decisions stream."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines import any_block

from sim.results.results import Results
from sim.run import load, run

ENGINE: dict[str, Any] = {
    "model": "llama-2-7b",
    "gpu": "a100-80gb-sxm",
    "num_gpu_blocks_override": 1001,
    "enable_prefix_caching": False,
    "stepping": "reference",
}
ONE_SECOND: dict[str, Any] = {"kind": "constant", "step_s": 1.0}


@dataclass
class Run:
    """What a run decided and found."""

    results: Results
    lines: list[dict[str, Any]]

    @property
    def plan(self) -> list[tuple[float, dict[str, int]]]:
        """(instant of ``schedule()`` in s, scheduled tokens by request id), step by step."""
        return [(line["time_s"], line["scheduled"]) for line in self.lines]

    def seconds(self, column: str) -> list[float]:
        """A column of instants of the request table, in seconds."""
        return [ns / 1e9 for ns in self.results.record.requests[column].tolist()]


def backlog(inputs: Sequence[int], outputs: Sequence[int], at_s: float = 0.0) -> dict[str, Any]:
    """Requests with these lengths, all at one instant."""
    return {
        "requests": len(inputs),
        "arrival": {"process": "burst", "at_s": at_s},
        "input_tokens": {"dist": "values", "values": list(inputs)},
        "output_tokens": {"dist": "values", "values": list(outputs)},
    }


def arrivals(*rows: tuple[float, int, int], **more: Any) -> dict[str, Any]:
    """One class per request: (arrival in s, input tokens, output tokens); ids are their positions."""
    return {"classes": [{"name": f"c{i}", **backlog([n], [m], at_s=at)} for i, (at, n, m) in enumerate(rows)], **more}


def simulate(workload: dict[str, Any], *, latency: dict[str, Any] | None = None, **engine: Any) -> Run:
    """Run ``workload``; keywords are engine settings, ``cluster`` the section of that name."""
    scenario = {"name": "hand-made", "workload": workload, "latency": latency or ONE_SECOND}
    if "cluster" in engine:
        scenario["cluster"] = engine.pop("cluster")
    stream = io.StringIO()
    results = run(load({**scenario, "engine": any_block({**ENGINE, **engine})}), decisions=stream)
    return Run(results, [json.loads(line) for line in stream.getvalue().splitlines()])


def busy_steps(run: Run) -> dict[str, Any]:
    """The recorded steps that scheduled something."""
    steps = run.results.record.steps
    busy = steps["num_prefills"] + steps["num_decodes"] > 0
    return {name: column[busy] for name, column in steps.items()}
