"""The ratios below the table of ``benchmarks.speed``: what must not grow, and what the outputs cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.speed_runs import Run, measure_best
from benchmarks.speed_workloads import (
    Scenario,
    Workload,
    least_outstanding,
    one_request,
    prefix_affinity,
    scenario_of,
)

MOST_GROWTH = 1.3
"""CPU per request of the larger run over that of the smaller, start-up left out, at most."""
MOST_FOR_OUTPUTS = 2.0
"""CPU with report and trace over CPU without, at most."""
OUTPUTS_RUN = 10_000
"""Requests of the two runs that the cost of outputs is taken from."""
LENGTHS = (10_000, 1_000_000)
"""Requests of the two runs that differ in length, on 16 replicas."""
REPLICAS = (8, 128)
"""Replicas of the two runs that differ in size, at the same load each."""
REQUESTS_PER_REPLICA = 3_000
"""Requests of those two runs for each of their replicas."""
GROWING: dict[str, Callable[[int, int], Scenario]] = {
    "least_outstanding": least_outstanding,
    "prefix_affinity": prefix_affinity,
}
"""The rows that ``--growth`` repeats: scenario by (requests, replicas)."""


@dataclass(frozen=True)
class Ratio:
    """A line below the table: what one run took over what another did."""

    what: str
    value: float
    at_most: float

    @property
    def met(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.value <= self.at_most

    @property
    def text(self) -> str:
        """The line."""
        return f"{self.what}: {self.value:.2f} times; at most {self.at_most}: {'met' if self.met else 'MISSED'}"


def growth(what: str, small: tuple[Run, Run], large: tuple[Run, Run]) -> Ratio:
    """CPU per request of ``large`` over that of ``small``: each is a run and its start-up (a run of one request).

    10,000 requests in 1.5 s and a million in 110 s, both after 0.5 s of start-up, are 100 and 109.5 microseconds a
    request: 1.1 times.
    """
    per_request = [
        (run.reference_cpu_s - start.reference_cpu_s) / (run.requests - start.requests) for run, start in (small, large)
    ]
    return Ratio(what, per_request[1] / per_request[0], MOST_GROWTH)


def growth_of_d(workload: Workload, long_run: Run, start: Run, repeat: int) -> Ratio:
    """The growth of row D, whose own run is the longer one."""
    size = min(LENGTHS[0], long_run.requests)
    scenario = scenario_of(workload, size / workload.scenario["workload"]["requests"], None)
    short_run, _ = measure_best(f"{workload.name}, {size:,} requests", scenario, repeat)
    what = f"CPU per request of {workload.name} from {size:,} to {long_run.requests:,} requests"
    return growth(what, (short_run, start), (long_run, start))


def growth_of_routed(name: str, scale: float, repeat: int) -> Iterator[Ratio]:
    """The growth of a routed row with requests, then with replicas."""
    scenario_for = GROWING[name]
    pairs = {
        "requests": [(requests, 16) for requests in LENGTHS],
        "replicas": [(REQUESTS_PER_REPLICA * replicas, replicas) for replicas in REPLICAS],
    }
    for unit, sizes in pairs.items():
        measured = []
        for requests, replicas in sizes:
            scenario = scenario_for(max(2, round(requests * scale)), replicas)
            scenario |= {"name": name, "outputs": {"report": False, "trace": False}}
            label = f"{name}, {replicas} replicas, {scenario['workload']['requests']:,} requests"
            start, _ = measure_best(f"{label}: start-up", one_request(scenario), max(repeat, 2))
            measured.append((measure_best(label, scenario, repeat)[0], start))
        ends = [run.requests if unit == "requests" else size[1] for (run, _), size in zip(measured, sizes, strict=True)]
        what = f"CPU per request of {name} from {ends[0]:,} to {ends[1]:,} {unit}, start-up left out"
        yield growth(what, measured[0], measured[1])


def cost_of_outputs(workload: Workload, repeat: int) -> Ratio:
    """Report and trace must not cost more than everything else."""
    scale = OUTPUTS_RUN / workload.scenario["workload"]["requests"]
    runs = [
        measure_best(
            f"{workload.name}, {OUTPUTS_RUN:,} requests, {'all outputs' if on else 'without report and trace'}",
            scenario_of(workload, scale, None, all_outputs=on),
            repeat,
        )[0]
        for on in (False, True)
    ]
    what = f"CPU of {workload.name} at {OUTPUTS_RUN:,} requests with report and trace over without"
    return Ratio(what, runs[1].reference_cpu_s / runs[0].reference_cpu_s, MOST_FOR_OUTPUTS)
