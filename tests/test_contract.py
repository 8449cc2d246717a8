"""The result contract, end to end on a small mixed scenario, through the command and from the files it writes."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

SCENARIO = """\
name: mixed
seed: 5
workload:
  classes:
    - name: chat
      tenant: acme
      requests: 60
      arrival: {process: poisson, rate: 40.0}
      input_tokens: {dist: lognormal, mean: 150, cv: 0.8, max: 700}
      output_tokens: {dist: lognormal, mean: 30, cv: 1.0, max: 120}
      prefix: {groups: 3, tokens: 64}
    - name: batch
      tenant: umbrella
      priority: 5
      requests: 40
      arrival: {process: constant, rate: 30.0}
      input_tokens: {dist: uniform, low: 1, high: 900}
      output_tokens: {dist: values, values: [1, 2, 60]}
    - name: agents
      tenant: acme
      requests: 30
      arrival: {process: gamma, rate: 6.0, cv: 2.0}
      input_tokens: {dist: fixed, value: 40}
      output_tokens: {dist: fixed, value: 20}
      sessions: {turns: 3, think_time_s: 0.4}
cluster: {replicas: 2, router: least_outstanding}
latency: {client_overhead_ms: 0}  # so that tokens are seen at the very end of their steps
engine:
  model: llama-2-7b
  gpu: a100-80gb-sxm
  max_model_len: 800
  num_gpu_blocks_override: 70
  max_num_seqs: 16
  policy: priority
  stepping: reference
slo: {ttft_p95_ms: 400, tpot_p99_ms: 80, itl_p99_ms: 200, e2el_p95_ms: 4000}
"""
FILES = ["summary.json", "requests.parquet", "steps.parquet", "scenario.resolved.yaml", "report.html", "trace.json.gz"]
COUNTERS = ("duration", "completed", "failed", "total_input_tokens", "total_output_tokens")
RATES = ("request_throughput", "request_goodput", "output_throughput", "total_token_throughput")
STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")
METRICS = ("ttft", "tpot", "itl", "e2el")
SECTIONS = (
    "counts",
    "load",
    "queue",
    "kv",
    "preemptions",
    "utilization",
    "error",
    "cost",
    "speculative",
    "slo",
    "tenants",
    "classes",
    "replicas",
    "run",
)
CALM = [
    part for index, rate in enumerate((4, 3, 1)) for part in ("--set", f"workload.classes.{index}.arrival.rate={rate}")
]
"""A tenth of the load; what is too long for the engine is still rejected."""
ENDS = ("completed", "rejected", "timed_out", "failed", "cancelled")
LINE_KEYS = ["step", "time_s", "replica", "scheduled", "preempted", "finished", "free_blocks"]
COMMAND = str(Path(sys.executable).with_name("simrun"))


def simrun(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user runs it."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


class Outputs:
    """Everything that one run wrote."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        scenario = folder / "mixed.yaml"
        scenario.write_text(SCENARIO)
        out, decisions = folder / "out", folder / "decisions.jsonl"
        self.process = simrun(str(scenario), "--out", str(out), "--decisions", str(decisions), *arguments)
        self.out = out
        self.text = (out / "summary.json").read_text()
        self.summary: dict[str, Any] = json.loads(self.text)
        self.requests = pd.read_parquet(out / "requests.parquet").set_index("request_id")
        self.steps = pd.read_parquet(out / "steps.parquet")
        self.lines = [json.loads(line) for line in decisions.read_text().splitlines()]

    @property
    def done(self) -> pd.DataFrame:
        return self.requests[self.requests["status"] == "completed"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return Outputs(tmp_path_factory.mktemp("contract"))


def timeless(text: str) -> str:
    """A summary without the lines of its timing keys."""
    lines = [line for line in text.splitlines() if '"cpu_s"' not in line and '"wall_s"' not in line]
    assert len(lines) == len(text.splitlines()) - 2
    return "\n".join(lines)


# --- files and keys ------------------------------------------------------------------------------


def test_the_scenario_has_something_of_everything(outputs: Outputs) -> None:
    counts, preemptions = outputs.summary["counts"], outputs.summary["preemptions"]
    assert outputs.process.returncode == 0
    assert outputs.process.stderr == ""
    assert counts["completed"] > 80
    assert counts["rejected"] > 0
    assert preemptions["total"] > 0
    assert outputs.summary["kv"]["prefix_cache_hits"] > 0
    assert (outputs.requests["output_tokens"] == 1).any()
    assert (outputs.steps["num_prefills"] > 1).any()


def test_the_six_files(outputs: Outputs) -> None:
    assert sorted(path.name for path in outputs.out.iterdir()) == sorted(FILES)
    report = (outputs.out / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org/", "")
    assert "https://" not in report
    with gzip.open(outputs.out / "trace.json.gz", "rt") as stream:
        assert json.load(stream)["traceEvents"]


def test_the_keys_of_vllms_benchmark_and_the_sections(outputs: Outputs) -> None:
    names = [f"{statistic}_{metric}_ms" for metric in METRICS for statistic in STATISTICS]
    assert set(outputs.summary) == {*COUNTERS, *RATES, *names, *SECTIONS}
    numbers = [outputs.summary[name] for name in (*COUNTERS, *RATES, *names)]
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    assert {"seed", "version", "profile_hash", "steps", "simulated_s", "cpu_s"} <= set(outputs.summary["run"])
    assert outputs.summary["run"]["seed"] == 5


# --- counts --------------------------------------------------------------------------------------


def test_counts_add_up(outputs: Outputs) -> None:
    counts, requests = outputs.summary["counts"], outputs.requests
    assert counts["submitted"] == sum(counts[end] for end in ENDS) == len(requests) == 130
    assert {end: counts[end] for end in ENDS} == {end: int((requests["status"] == end).sum()) for end in ENDS}
    assert outputs.summary["completed"] == counts["completed"]
    assert outputs.summary["failed"] == counts["submitted"] - counts["completed"]
    by_tenant = outputs.summary["tenants"]
    assert set(by_tenant) == {"acme", "umbrella"}
    assert sum(entry["counts"]["submitted"] for entry in by_tenant.values()) == 130
    rejected = requests[requests["status"] == "rejected"]
    assert rejected["reason"].str.contains("max_model_len").all()
    assert (rejected["input_tokens"] >= 800).all()
    assert rejected["finish_s"].isna().all()


def test_token_totals_and_throughputs(outputs: Outputs) -> None:
    summary, done = outputs.summary, outputs.done
    assert summary["total_input_tokens"] == done["input_tokens"].sum()
    assert summary["total_output_tokens"] == done["output_tokens"].sum()
    duration = done["finish_s"].max() - outputs.requests["arrival_s"].min()
    assert summary["duration"] == pytest.approx(duration, abs=1e-9)
    assert summary["request_throughput"] == pytest.approx(len(done) / duration)
    assert summary["output_throughput"] == pytest.approx(done["output_tokens"].sum() / duration)
    tokens = done["output_tokens"].sum() + done["input_tokens"].sum()
    assert summary["total_token_throughput"] == pytest.approx(tokens / duration)


# --- latencies -----------------------------------------------------------------------------------


def check_statistics(summary: dict[str, Any], metric: str, sample_ms: Any) -> None:
    expected = {"mean": np.mean(sample_ms), "median": np.median(sample_ms), "std": np.std(sample_ms)}
    expected |= {f"p{q}": np.percentile(sample_ms, q) for q in (50, 90, 95, 99)}
    for name, value in expected.items():
        assert summary[f"{name}_{metric}_ms"] == pytest.approx(value, rel=1e-9, abs=1e-6), (name, metric)


def test_latencies_follow_from_the_requests(outputs: Outputs) -> None:
    summary, done = outputs.summary, outputs.done
    ttft = (done["first_token_s"] - done["arrival_s"]) * 1e3
    e2el = (done["finish_s"] - done["arrival_s"]) * 1e3
    several = done["output_tokens"] > 1
    tpot = ((e2el - ttft) / (done["output_tokens"] - 1))[several]
    assert not several.all()
    np.testing.assert_allclose(done["ttft_ms"], ttft, atol=1e-5)
    np.testing.assert_allclose(done["e2el_ms"], e2el, atol=1e-5)
    np.testing.assert_allclose(done["tpot_ms"][several], tpot, atol=1e-5)
    assert done["tpot_ms"][~several].isna().all()
    for metric, sample in (("ttft", done["ttft_ms"]), ("e2el", done["e2el_ms"]), ("tpot", done["tpot_ms"][several])):
        check_statistics(summary, metric, sample)


def test_goodput_counts_requests_within_every_limit(outputs: Outputs) -> None:
    done = outputs.done
    tpot = done["tpot_ms"].fillna(0.0)
    good = (done["ttft_ms"] <= 400) & (tpot <= 80) & (tpot <= 200) & (done["e2el_ms"] <= 4000)
    assert 0 < good.sum() < len(done)
    assert outputs.summary["request_goodput"] == pytest.approx(good.sum() / outputs.summary["duration"])
    limits = outputs.summary["slo"]["limits"]
    assert set(limits) == {"ttft_p95_ms", "tpot_p99_ms", "itl_p99_ms", "e2el_p95_ms"}
    for name, entry in limits.items():
        metric, percentile, _ = name.split("_")
        assert entry["value"] == outputs.summary[f"{percentile}_{metric}_ms"]
        assert entry["met"] == (entry["value"] <= entry["limit"])


def token_times(outputs: Outputs, calm: pd.DataFrame) -> dict[str, list[float]]:
    """When each token of requests that were never preempted came, from decisions and ends of steps alone: the
    step that computes the last token of the prompt gives one when it ends, and so does every step after it."""
    filled = [line for line in outputs.lines if line["scheduled"]]
    left = {str(name): int(n) for name, n in (calm["input_tokens"] - calm["num_cached_tokens"]).items()}
    times: dict[str, list[float]] = {name: [] for name in left}
    steps = outputs.steps
    ends = steps["end_s"][steps["num_prefill_tokens"] + steps["num_decodes"] > 0]
    for line, end_s in zip(filled, ends, strict=True):
        for name, tokens in line["scheduled"].items():
            if name not in left:
                continue
            left[name] -= tokens
            if left[name] <= 0:
                times[name].append(end_s)
    return times


def test_inter_token_latencies_are_the_gaps_between_the_steps_that_gave_tokens(outputs: Outputs) -> None:
    calm = outputs.done[outputs.done["num_preemptions"] == 0]
    assert len(calm) > 60
    for name, instants in token_times(outputs, calm).items():
        row = calm.loc[name]
        assert len(instants) == row["output_tokens"]
        assert instants[0] == pytest.approx(row["first_token_s"], abs=1e-9)
        assert instants[-1] == pytest.approx(row["finish_s"], abs=1e-9)
        if len(instants) > 1:
            assert np.mean(np.diff(instants)) * 1e3 == pytest.approx(row["itl_mean_ms"], abs=1e-5)
            assert row["itl_mean_ms"] == pytest.approx(row["tpot_ms"])


def test_the_mean_itl_weighs_every_gap_alike(outputs: Outputs) -> None:
    done = outputs.done
    gaps = done["output_tokens"].sum() - len(done)
    total_ms = (done["e2el_ms"] - done["ttft_ms"]).sum()
    assert outputs.summary["mean_itl_ms"] == pytest.approx(total_ms / gaps)


# --- decisions and steps -------------------------------------------------------------------------


def test_decisions_account_for_every_token(outputs: Outputs) -> None:
    assert all(list(line) == LINE_KEYS for line in outputs.lines)
    computed: dict[str, int] = defaultdict(int)
    for line in outputs.lines:
        for name, tokens in line["scheduled"].items():
            assert tokens > 0
            computed[name] += tokens
    assert sum(computed.values()) == outputs.summary["preemptions"]["computed_tokens"]
    done = outputs.done
    assert set(computed) == set(done.index)
    calm = done[done["num_preemptions"] == 0]
    expected = calm["input_tokens"] - calm["num_cached_tokens"] + calm["output_tokens"] - 1
    assert {name: computed[name] for name in calm.index} == expected.to_dict()
    preempted = [name for line in outputs.lines for name in line["preempted"]]
    assert len(preempted) == outputs.summary["preemptions"]["total"] == done["num_preemptions"].sum()
    finished = [name for line in outputs.lines for name in line["finished"]]
    assert len(finished) == len(set(finished))
    assert set(finished) <= set(done.index)
    # What ends with a replica's last step is in no line any more.
    assert len(done) - len(finished) <= 2 * 16


def test_steps_and_decisions_tell_the_same_story(outputs: Outputs) -> None:
    filled = [line for line in outputs.lines if line["scheduled"]]
    steps = outputs.steps
    steps = steps[steps["num_prefill_tokens"] + steps["num_decodes"] > 0]
    assert len(steps) == len(filled) == outputs.summary["utilization"]["steps"]
    assert steps["num_steps"].eq(1).all()
    for name, values in {
        "replica": [line["replica"] for line in filled],
        "free_blocks": [line["free_blocks"] for line in filled],
        "num_preempted": [len(line["preempted"]) for line in filled],
    }.items():
        assert steps[name].tolist() == values
    tokens = steps["num_prefill_tokens"] + steps["num_decodes"]
    assert tokens.tolist() == [sum(line["scheduled"].values()) for line in filled]
    np.testing.assert_allclose(steps["scheduled_s"], [line["time_s"] for line in filled], atol=1e-9)


def test_free_blocks_stay_within_the_pool(outputs: Outputs) -> None:
    """``num_gpu_blocks_override: 70`` includes the null block: 69 are usable."""
    free = [line["free_blocks"] for line in outputs.lines]
    assert min(free) >= 0
    assert max(free) <= 69
    assert min(free) < 5
    assert outputs.summary["kv"]["num_gpu_blocks"] == 2 * 69
    np.testing.assert_allclose(outputs.steps["kv_usage"], (69 - outputs.steps["free_blocks"]) / 69)
    assert outputs.summary["kv"]["max_usage"] == pytest.approx((69 - min(free)) / 69)


# --- seeds ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(outputs: Outputs, tmp_path: Path) -> None:
    again = Outputs(tmp_path)
    assert timeless(again.text) == timeless(outputs.text)
    assert again.lines == outputs.lines
    for name in FILES[1:4]:
        assert (again.out / name).read_bytes() == (outputs.out / name).read_bytes()


def test_another_seed_gives_another_run(outputs: Outputs, tmp_path: Path) -> None:
    other = Outputs(tmp_path, "--seed", "6")
    assert other.summary["run"]["seed"] == 6
    assert not other.requests["arrival_s"].equals(outputs.requests["arrival_s"])
    assert not other.requests["input_tokens"].equals(outputs.requests["input_tokens"])


def test_another_policy_leaves_the_workload_as_it_was(outputs: Outputs, tmp_path: Path) -> None:
    other = Outputs(tmp_path, "--set", "engine.policy=srtf", "--set", "cluster.router=power_of_two")
    for name in ("input_tokens", "class", "tenant", "priority"):
        assert other.requests[name].equals(outputs.requests[name])
    by_itself = outputs.requests["class"] != "agents"  # later turns arrive when the turn before has ended
    assert other.requests["arrival_s"][by_itself].equals(outputs.requests["arrival_s"][by_itself])
    done = (other.requests["status"] == "completed") & (outputs.requests["status"] == "completed")
    assert other.requests["output_tokens"][done].equals(outputs.requests["output_tokens"][done])
    assert other.summary["mean_e2el_ms"] != outputs.summary["mean_e2el_ms"]


def test_the_resolved_scenario_gives_the_same_run(outputs: Outputs) -> None:
    process = simrun(str(outputs.out / "scenario.resolved.yaml"), "--json")
    assert process.returncode == 0
    assert timeless(process.stdout) == timeless(outputs.text)


# --- exit codes and streams ----------------------------------------------------------------------


def test_json_prints_the_summary_and_nothing_else(outputs: Outputs) -> None:
    process = simrun(str(outputs.folder / "mixed.yaml"), "--json")
    assert (process.returncode, process.stderr) == (0, "")
    assert timeless(process.stdout) == timeless(outputs.text)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["--check-slo"], 3),
        (["--check-slo", "--set", "slo={ttft_p95_ms: 1000000}"], 3),
        (["--check-slo", "--set", "slo={ttft_p95_ms: 1000000, max_rejected: 1}", *CALM], 0),
        (["--check-slo", "--set", "slo={ttft_p95_ms: 1000000}", *CALM], 3),
        (["--set", "engine.max_num_seqs=0"], 2),
        (["--set", "engine.polcy=fcfs"], 2),
    ],
)
def test_exit_codes(outputs: Outputs, arguments: list[str], code: int) -> None:
    process = simrun(str(outputs.folder / "mixed.yaml"), *arguments)
    assert process.returncode == code
    assert "Traceback" not in process.stderr
    assert bool(process.stdout) is (code != 2)
    assert bool(process.stderr) is (code != 0)


def test_a_missed_slo_is_named(outputs: Outputs) -> None:
    missed = [name for name, entry in outputs.summary["slo"]["limits"].items() if not entry["met"]]
    process = simrun(str(outputs.folder / "mixed.yaml"), "--check-slo", "--json")
    assert missed
    assert all(f"SLO missed: {name}" in process.stderr for name in missed)
    assert json.loads(process.stdout)["slo"]["met"] is False


def test_every_problem_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(SCENARIO.replace("max_model_len: 800", "max_modl_len: 800").replace("rate: 40.0", "rate: -1"))
    process = simrun("broken.yaml", cwd=tmp_path)
    assert process.returncode == 2
    lines = process.stderr.splitlines()
    assert any(line.startswith("broken.yaml:8:") and "rate" in line for line in lines)
    assert any(line.startswith("broken.yaml:31:") and "did you mean `max_model_len`" in line for line in lines)


def test_a_failed_simulation_exits_with_1(tmp_path: Path) -> None:
    """A policy of one's own that lets no request through: the run says so and leaves no half-written files."""
    (tmp_path / "nobody.py").write_text(
        "from policies.base import Policy, StepLimits\n"
        "class Nobody(Policy):\n"
        "    name = 'nobody'\n"
        "    summary = 'runs nothing'\n"
        "    def rank(self, request, now_ns):\n"
        "        return 0\n"
        "    def step_limits(self, now_ns):\n"
        "        return StepLimits(0, True)\n"
    )
    (tmp_path / "mixed.yaml").write_text(SCENARIO)
    process = subprocess.run(
        [COMMAND, "mixed.yaml", "--set", "engine.policy=nobody:Nobody", "--out", "out", "--decisions", "d.jsonl"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert "stuck" in process.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "d.jsonl").exists()
