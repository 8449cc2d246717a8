"""Every scenario that ships runs as it stands, and the idea its header promises shows in the numbers."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.checks.all_checks import check_all
from sim.errors import InputError
from sim.run import load

SCENARIOS = Path(__file__).parents[1] / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
WHOLE_PROMPTS = ("engine.enable_chunked_prefill=false", "engine.max_num_batched_tokens=32768")


@cache
def run(name: str, *overrides: str) -> dict[str, Any]:
    """The summary of a scenario; the same one is run once."""
    return sim.simulate(SCENARIOS / f"{name}.yaml", overrides=overrides).summary


def header(name: str) -> str:
    """The comment at the top of a scenario."""
    text = (SCENARIOS / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text[: text.index("\nname:")].splitlines()
    return "\n".join(line.removeprefix("#").rstrip() for line in lines)


def quoted_overrides(name: str) -> list[list[str]]:
    """The ``--set`` values of every command, and of every line of options, in the header."""
    joined = re.sub(r" \\\n\s*", " ", header(name))
    found = []
    for line in joined.splitlines():
        if re.match(r"\s+(simrun scenarios/|--set )", line):
            words = shlex.split(re.split(r"\s{3,}", line.strip())[0])  # what follows a gap is a remark
            found.append([words[at + 1] for at, word in enumerate(words) if word == "--set"])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_it_stands(name: str) -> None:
    summary = run(name)
    counts = summary["counts"]
    assert counts["submitted"] == counts["completed"] > 100
    assert [note for note in summary["run"]["notes"] if not note.startswith("engine.dtype auto: ")] == []


@pytest.mark.parametrize("name", NAMES)
def test_header_asks_and_shows_how(name: str) -> None:
    text = header(name)
    assert text.lstrip().splitlines()[0].endswith("?")
    assert f"simrun scenarios/{name}.yaml --out runs/" in text


@pytest.mark.parametrize("name", NAMES)
def test_what_the_header_sets_is_accepted(name: str) -> None:
    for overrides in quoted_overrides(name):
        kept = [each for each in overrides if not each.startswith("workload.trace.path=")]
        check_all(load(SCENARIOS / f"{name}.yaml", kept))


def test_quickstart_meets_its_slo_until_the_rate_goes_up() -> None:
    assert run("quickstart")["slo"]["met"]
    faster = run("quickstart", "workload.arrival.rate=10")["slo"]["limits"]
    assert faster["ttft_p95_ms"]["met"]
    assert not faster["itl_p99_ms"]["met"]
    assert not run("quickstart", "workload.arrival.rate=18")["slo"]["limits"]["ttft_p95_ms"]["met"]


def test_continuous_batching_gains_by_the_spread_of_lengths() -> None:
    equal = "workload.output_tokens={dist: fixed, value: 256}"
    static = "engine.batching=static"
    spread = run("continuous_batching"), run("continuous_batching", static)
    fixed = run("continuous_batching", equal), run("continuous_batching", static, equal)
    assert spread[1]["duration"] > 3 * spread[0]["duration"]
    assert spread[1]["utilization"]["seat_efficiency"] < 0.3 < 0.95 < spread[0]["utilization"]["seat_efficiency"]
    assert fixed[0]["duration"] < fixed[1]["duration"] < 1.25 * fixed[0]["duration"]


def test_chunked_prefill_trades_itl_for_the_long_prompts_ttft() -> None:
    chunked, whole = run("chunked_prefill"), run("chunked_prefill", *WHOLE_PROMPTS)
    small = run("chunked_prefill", "engine.max_num_batched_tokens=512")
    assert small["p99_itl_ms"] < chunked["p99_itl_ms"] < whole["p99_itl_ms"] / 2
    ttft = [each["tenants"]["documents"]["mean_ttft_ms"] for each in (whole, chunked, small)]
    assert ttft[0] < ttft[1] < 1.15 * ttft[0]
    assert ttft[2] > 1.25 * ttft[0]
    assert chunked["slo"]["met"]
    assert not whole["slo"]["met"]


def test_a_rare_stall_hides_from_the_p99() -> None:
    rare = "workload.classes.1.arrival.rate=0.2"
    chunked, whole = run("chunked_prefill", rare), run("chunked_prefill", rare, *WHOLE_PROMPTS)
    assert whole["p99_itl_ms"] < 1.25 * chunked["p99_itl_ms"]


def test_kv_offloading_pays_where_the_gpus_do_not_hold_the_prompts() -> None:
    off = "engine.kv_offloading_size=null"
    short = ("workload.prefix.tokens=8000", "workload.input_tokens.value=8256")
    plain, offloaded = run("kv_offloading", off), run("kv_offloading")
    assert 1.10 < offloaded["total_token_throughput"] / plain["total_token_throughput"] < 1.30
    assert offloaded["mean_ttft_ms"] < 0.8 * plain["mean_ttft_ms"]
    hits = offloaded["kv"]["offloading"]
    assert hits["gpu_hits"] + hits["host_hits"] == offloaded["kv"]["prefix_cache_hits"]
    assert hits["host_hits"] > 0.1 * offloaded["kv"]["prefix_cache_queries"]
    plain, offloaded = run("kv_offloading", off, *short), run("kv_offloading", *short)
    assert 0.98 < offloaded["total_token_throughput"] / plain["total_token_throughput"] < 1.01
    assert offloaded["kv"]["offloading"]["host_hits"] < 0.02 * offloaded["kv"]["prefix_cache_queries"]
    assert offloaded["kv"]["offloading"]["stores"]["bytes"] > 0


def test_kv_pressure_preempts_and_the_remedies_help() -> None:
    plain = run("kv_pressure")
    assert plain["preemptions"]["total"] > 100
    assert plain["preemptions"]["recompute_tax"] > 0.1
    assert plain["kv"]["max_usage"] > 0.98
    reserve = run("kv_pressure", "engine.watermark=0.05")
    assert reserve["preemptions"]["total"] < plain["preemptions"]["total"] / 5
    small_kv = run("kv_pressure", "engine.kv_cache_dtype=fp8")
    assert small_kv["preemptions"]["total"] == 0
    assert small_kv["mean_e2el_ms"] < plain["mean_e2el_ms"]
    fewer = run("kv_pressure", "engine.max_num_seqs=32")
    assert fewer["preemptions"]["total"] == 0
    assert fewer["mean_ttft_ms"] > plain["mean_ttft_ms"]
    assert fewer["kv"]["mean_usage"] < plain["kv"]["mean_usage"]
    swap = run("kv_pressure", "engine.preemption=swap")["preemptions"]
    assert swap["total"] > 100
    assert swap["recomputed_tokens"] == 0


def test_length_aware_policies_help_the_many_and_the_longest_pay() -> None:
    fcfs, sjf = run("policy_comparison"), run("policy_comparison", "engine.policy=sjf")
    for key in ("mean_ttft_ms", "median_ttft_ms", "mean_e2el_ms", "median_e2el_ms"):
        assert sjf[key] < 0.8 * fcfs[key], key
    assert sjf["p99_ttft_ms"] > 1.3 * fcfs["p99_ttft_ms"]
    assert sjf["output_throughput"] == pytest.approx(fcfs["output_throughput"], rel=0.02)
    guess = run("policy_comparison", "engine.policy=sjf", "engine.predictor=class_mean")
    kept = (fcfs["mean_ttft_ms"] - guess["mean_ttft_ms"]) / (fcfs["mean_ttft_ms"] - sjf["mean_ttft_ms"])
    assert kept > 0.7


def test_tiers_keep_premium_within_its_slo_while_fcfs_does_not() -> None:
    tiers, fcfs = run("multi_tenant_tiers"), run("multi_tenant_tiers", "engine.policy=fcfs")
    no_eviction = run("multi_tenant_tiers", "engine.policy={name: tiered, ttft_slo_ms: {}, age_promote_s: 60}")
    premium, standard, budget = (tiers["tenants"][tier]["p95_ttft_ms"] for tier in ("premium", "standard", "budget"))
    assert premium < 600 < standard < budget
    assert tiers["slo"]["met"]
    assert tiers["preemptions"]["total"] > 0
    assert no_eviction["preemptions"]["total"] == 0
    assert no_eviction["tenants"]["premium"]["p95_ttft_ms"] > 600
    assert no_eviction["tenants"]["standard"]["p95_ttft_ms"] > 2000
    assert fcfs["tenants"]["premium"]["p95_ttft_ms"] > 5000
    no_cache = run("multi_tenant_tiers", "engine.enable_prefix_caching=false")
    assert no_cache["preemptions"]["computed_tokens"] > 1.1 * tiers["preemptions"]["computed_tokens"]
    assert no_cache["tenants"]["standard"]["p95_ttft_ms"] > 3 * standard


def test_azure_replay_takes_a_trace_from_elsewhere(tmp_path: Path) -> None:
    lines = (SCENARIOS / "data/synthetic_azure_format.csv").read_text(encoding="ascii").splitlines(keepends=True)
    other = tmp_path / "other.csv"
    other.write_text("".join(lines[:51]), encoding="ascii")
    assert run("azure_replay", f"workload.trace.path={other}")["counts"]["completed"] == 50


def test_the_prefix_cache_spares_prompts_unless_the_pool_is_small() -> None:
    cached, uncached = run("prefix_sessions"), run("prefix_sessions", "engine.enable_prefix_caching=false")
    small = run("prefix_sessions", "engine.num_gpu_blocks_override=4000")
    assert cached["kv"]["prefix_cache_hit_rate"] > 0.7
    assert uncached["kv"]["prefix_cache_hits"] == 0
    assert cached["p95_ttft_ms"] < uncached["p95_ttft_ms"] / 3
    assert cached["utilization"]["mean_prefill_tokens"] < uncached["utilization"]["mean_prefill_tokens"] / 3
    assert 0 < small["kv"]["prefix_cache_hit_rate"] < cached["kv"]["prefix_cache_hit_rate"] / 2


def test_routers_that_keep_conversations_together_reuse_their_kv() -> None:
    spread, sticky, affinity = (
        run("routed_replicas", f"cluster.router={router}")
        for router in ("round_robin", "sticky_session", "prefix_affinity")
    )
    assert all(replica["requests"] > 400 for each in (spread, sticky, affinity) for replica in each["replicas"])
    for kept in (sticky, affinity):
        assert kept["kv"]["prefix_cache_hit_rate"] > 0.75 > 0.5 > spread["kv"]["prefix_cache_hit_rate"]
        assert kept["p95_ttft_ms"] < spread["p95_ttft_ms"] / 2


def test_drafts_pay_while_few_run_and_most_are_right() -> None:
    """E18: 2-3x at high acceptance and small batch; below 1x at low acceptance, and at a large batch."""
    without = "engine.speculative=null"
    crowd = "workload.requests=800", "workload.arrival={process: closed_loop, concurrency: 256}"
    plain, drafted = run("speculative_decoding", without), run("speculative_decoding")
    right = run("speculative_decoding", "engine.speculative.acceptance=0.9")
    wrong = run("speculative_decoding", "engine.speculative.acceptance=0.2")
    assert 2 < plain["mean_tpot_ms"] / drafted["mean_tpot_ms"] < plain["mean_tpot_ms"] / right["mean_tpot_ms"] < 3.2
    assert 0.7 < plain["mean_tpot_ms"] / wrong["mean_tpot_ms"] < 1
    assert drafted["speculative"]["mean_acceptance_length"] == pytest.approx((1 - 0.8**5) / (1 - 0.8), rel=0.03)
    assert plain["speculative"] is None
    assert drafted["mean_ttft_ms"] > plain["mean_ttft_ms"]  # the draft model reads the prompt too
    full = run("speculative_decoding", *crowd, without), run("speculative_decoding", *crowd)
    assert full[1]["mean_tpot_ms"] > 0.95 * full[0]["mean_tpot_ms"]
    assert full[1]["mean_e2el_ms"] > 1.02 * full[0]["mean_e2el_ms"]
    eight = run("speculative_decoding", "engine.speculative.num_speculative_tokens=8")
    assert drafted["speculative"]["tokens_per_step"] < eight["speculative"]["tokens_per_step"] < 4.5
    assert eight["mean_tpot_ms"] == pytest.approx(drafted["mean_tpot_ms"], rel=0.1)


def test_a_window_keeps_long_contexts_from_running_out_of_memory() -> None:
    """E13: with all KV kept the longest are rejected and the rest wait; a window holds the same for any length."""
    full = "engine.model=mistral-7b-v0.3"
    window, out_of_memory = run("long_context"), run("long_context", full, "engine.max_model_len=20000")
    assert out_of_memory["counts"]["rejected"] >= 5
    for too_much in (full, "engine.max_num_batched_tokens=8192"):
        with pytest.raises(InputError, match="vLLM refuses to start; lower max_model_len"):
            run("long_context", too_much)
    assert out_of_memory["p95_ttft_ms"] > 10 * window["p95_ttft_ms"]
    assert window["preemptions"]["total"] == 0 < out_of_memory["preemptions"]["total"]
    remedies = [
        run("long_context", full, each) for each in ("engine.gpu_memory_utilization=0.9", "engine.kv_cache_dtype=fp8")
    ]
    for each in remedies:
        assert each["counts"]["rejected"] == 0
        assert each["mean_ttft_ms"] > 4 * window["mean_ttft_ms"]
    small = run("long_context", "engine.max_num_batched_tokens=512")
    assert small["mean_ttft_ms"] < 0.7 * window["mean_ttft_ms"]
    assert small["kv"]["mean_usage"] < window["kv"]["mean_usage"]


def test_ranks_with_their_own_attention_win_with_a_crowd_and_lose_with_a_few() -> None:
    split = (
        *("engine.data_parallel_size=1", "engine.tensor_parallel_size=8"),
        *("engine.enable_expert_parallel=false", "engine.max_num_seqs=1024"),
    )
    few = "workload.requests=60", "workload.arrival.concurrency=16"
    ranks, one = run("expert_parallelism"), run("expert_parallelism", *split)
    assert ranks["cost"]["gpus"] == one["cost"]["gpus"] == 8
    assert 1.4 < ranks["output_throughput"] / one["output_throughput"] < 1.7
    assert 2.5 < ranks["p99_itl_ms"] / one["p99_itl_ms"] < 6
    assert (
        0.7
        < run("expert_parallelism", *few, *split)["mean_tpot_ms"] / run("expert_parallelism", *few)["mean_tpot_ms"]
        < 0.95
    )
    terms = ranks["utilization"]["step_time_s"]
    assert 0.1 < (terms["dispatch"] + terms["combine"]) / sum(terms.values()) < 0.25
    assert terms["waiting"] > 0
    assert "all_reduce" not in terms
    even = run("expert_parallelism", "latency.expert_load_imbalance=1")
    uneven = run("expert_parallelism", "latency.expert_load_imbalance=3")
    assert even["output_throughput"] / ranks["output_throughput"] == pytest.approx(9 / 8, rel=0.04)
    assert uneven["output_throughput"] == pytest.approx(0.8 * ranks["output_throughput"], rel=0.04)


def test_the_readme_lists_every_scenario() -> None:
    readme = (SCENARIOS.parent / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| .*\? \|$", readme, flags=re.MULTILINE)
    assert sorted(listed) == NAMES
