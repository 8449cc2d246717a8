"""What every claim of ``docs/claims.md`` is made of, and the scenarios they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sim

if TYPE_CHECKING:
    import pandas as pd

    from sim.latency.profile.cost import ProfileCost
    from sim.results.results import Results

Section = Mapping[str, Any]

VERDICTS = ("Holds", "Holds when", "Does not hold", "Not yet simulated", "Not yet measured")
"""How a verdict begins; the second is tried before the first."""
BURST: Section = {"process": "burst"}
ONE_TICK_STEPS: Section = {"kind": "constant", "step_s": 0.01, "client_overhead_ms": 0}
"""Every step takes as long as every other: durations count steps."""


class ClaimBroken(Exception):
    """A verdict's words are no longer what the numbers say; the message has the conditions that failed."""


@dataclass(frozen=True)
class Claim:
    """One rule of thumb: what is said, what a formula gives, what the simulator gives, and what follows."""

    key: str
    """Unique, lower case: the anchor on the page."""
    rows: str
    """Rows of docs/requirements.md that it belongs to."""
    title: str
    claimed: str
    computed: str
    simulated: str
    verdict: str
    """Begins with one of ``VERDICTS``."""
    holds: Mapping[str, bool]
    """What the verdict's words stand on; all must be true."""
    table: str = ""
    """Markdown below the text."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Figures that the tests and the notebook use by name."""

    def check(self) -> None:
        """Raises ClaimBroken where a condition fails, ValueError for a verdict that begins as none of ``VERDICTS``."""
        if not self.verdict.startswith(VERDICTS):
            raise ValueError(f"{self.key}: the verdict must begin with one of {', '.join(VERDICTS)}: {self.verdict!r}")
        broken = [text for text, holds in self.holds.items() if not holds]
        if broken:
            raise ClaimBroken(f"{self.key}: the verdict must be written anew, no longer true: {'; '.join(broken)}")

    @property
    def short_verdict(self) -> str:
        """The verdict's first clause; where the rule does not hold, its first sentence."""
        sentence = self.verdict.split(". ")[0].rstrip(".")
        return sentence if sentence.startswith("Does not") else sentence.split(": ")[0].split(";")[0]


def fixed(tokens: int) -> Section:
    """A length that is the same for every request."""
    return {"dist": "fixed", "value": tokens}


def backlog(requests: int, input_tokens: int | Section, output_tokens: int | Section) -> Section:
    """That many requests at once."""
    lengths = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return {
        "requests": requests,
        "arrival": BURST,
        **{key: fixed(value) if isinstance(value, int) else value for key, value in lengths.items()},
    }


SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.9,
        "max_model_len": 4096,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
    }
)
"""Of every engine here unless a claim says otherwise, whatever vLLM would pick for its GPU."""


def run(
    engine: Section, workload: Section, *, latency: Section | None = None, replicas: int = 1, seed: int = 0
) -> Results:
    """One scenario; Llama 2 7B on an A100 80 GB without prefix caching unless ``engine`` says otherwise."""
    scenario = {
        "name": "claim",
        "seed": seed,
        "workload": workload,
        "cluster": {"replicas": replicas},
        "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "enable_prefix_caching": False, **SIZES, **engine},
        **({"latency": latency} if latency else {}),
    }
    return sim.simulate(scenario)


def step_cost(**engine: Any) -> ProfileCost:
    """The measured step cost of such an engine, as scenarios use it by default."""
    from sim.latency.build import build_step_cost
    from sim.latency.profile.cost import ProfileCost
    from sim.scenario.schema import EngineConfig, LatencyConfig

    settings = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", **SIZES, **engine}
    cost = build_step_cost(EngineConfig(**settings), LatencyConfig())
    if not isinstance(cost, ProfileCost):
        raise TypeError(f"{settings['gpu']} has no built-in profile")
    return cost


def decode_ns(cost: ProfileCost, batch: int, context: int) -> int:
    """GPU time of one step of ``batch`` decodes at ``context`` tokens each."""
    from sim.latency.base import StepShape

    return cost.gpu_ns(StepShape(num_decodes=batch, num_sampled=batch, decode_context_tokens=batch * context))


def seat_share(steps: pd.DataFrame, max_num_seqs: int) -> float:
    """Seat-steps in which a request was computed, over ``max_num_seqs`` seats times all steps."""
    used = ((steps["num_prefills"] + steps["num_decodes"]) * steps["num_steps"]).sum()
    return float(used / (max_num_seqs * steps["num_steps"].sum()))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of text; the first column is left-aligned, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
