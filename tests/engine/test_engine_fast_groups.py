"""Layers of several kinds: the fast replica decides as the reference does, block for block, in every KV group.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios (the default is a short version).
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_fast_window import EXAMPLES, NO_SHRINK, SHORT, TIGHT, crowd, scenarios, taken  # noqa: F401

from policies.fcfs import Fcfs
from sim.cluster import simulate
from sim.cluster.acts import Act
from sim.cluster.deployment import resolve_deployment
from sim.engine.fast.allowed import why_not
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.variants.window_fast import WindowReplica
from sim.errors import InputError, SimulationError
from sim.latency.kv_layout import Kind, KvGroup
from sim.results.context import RunContext
from sim.results.summary import build_summary
from sim.run import load

Groups = Sequence[tuple[Kind, int, int | None]]
"""Kind, how many times the block size of the engine, and window of each group."""
TWO: Groups = (("window", 1, 64), ("full", 1, None))
THREE: Groups = (("window", 1, 64), ("window", 1, 20), ("full", 1, None))
MIXED: Groups = (("window", 2, 64), ("full", 1, None), ("window", 3, 20))
ALIKE: Groups = (*[("window", 1, 64)] * 3, ("full", 1, None))  # type: ignore[list-item]
CHUNKS: Groups = (("chunk", 1, 48), ("full", 1, None))
ALONE: Groups = (("chunk", 1, 1), ("full", 1, None))
STATES: Groups = (("state", 1, None), ("state", 1, None), ("full", 1, None))


@st.composite
def group_lists(draw: st.DrawFn) -> Groups:
    """Two to four groups, mostly with blocks of one size."""
    factors = draw(st.sampled_from([[1], [1, 2], [1, 2, 3]]))
    found: list[tuple[Kind, int, int | None]] = []
    for _ in range(draw(st.integers(2, 4))):
        kind = draw(st.sampled_from(KINDS))
        window = draw(st.sampled_from([1, 2, 7, 16, 17, 40, 64, 130])) if kind in ("window", "chunk") else None
        found.append((kind, draw(st.sampled_from(factors)), window))
    return found


KINDS: tuple[Kind, ...] = ("full", "full", "latent", "window", "window", "window", "chunk", "state")


def group_settings(given: SchedulerSettings, groups: Groups) -> SchedulerSettings:
    """The settings with these groups, and as many more blocks."""
    made = tuple(KvGroup(kind, factor * given.block_size, window) for kind, factor, window in groups)
    num_blocks = (given.num_gpu_blocks - 1) * max(sum(kind != "state" for kind, *_ in groups), 1) + 1
    return replace(given, sliding_window=None, kv_groups=made, num_gpu_blocks=num_blocks)


def outcome(scenario: dict[str, Any], acts: Sequence[Act], groups: Groups, stepping: str) -> tuple[list[str], Any, Any]:
    """Decisions, summary without its timing keys, and request columns."""
    stream = io.StringIO()
    loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
    deployment = resolve_deployment(loaded.scenario.engine, loaded.scenario.latency)
    deployment = replace(deployment, settings=group_settings(deployment.settings, groups))
    try:
        record = simulate.simulate_cluster(loaded, decisions=stream, acts=acts, deployment=deployment)
    except SimulationError as error:
        return stream.getvalue().splitlines(), str(error), None
    summary = build_summary(record, RunContext())
    summary["run"] = {key: value for key, value in summary["run"].items() if key not in ("cpu_s", "wall_s")}
    columns = {**record.requests, **{f"interruptions.{k}": v for k, v in record.interruptions.items()}}
    return stream.getvalue().splitlines(), summary, {k: v.tolist() for k, v in columns.items()}


def assert_equal(scenario: dict[str, Any], groups: Groups, acts: Sequence[Act] = ()) -> None:
    """Fast and reference, to the last digit."""
    theirs, ours = (outcome(scenario, acts, groups, stepping) for stepping in ("reference", "fast"))
    for number, (line, other) in enumerate(zip(theirs[0], ours[0], strict=False)):
        assert other == line, f"line {number}"
    assert ours == theirs


@settings(max_examples=EXAMPLES, deadline=None, phases=NO_SHRINK)
@given(scenario=scenarios(), groups=group_lists())
def test_the_fast_replica_equals_the_reference(scenario: tuple[dict[str, Any], list[Act]], groups: Groups) -> None:
    try:
        load(scenario[0])
    except InputError:
        return  # a combination that is refused
    kinds = {kind for kind, *_ in groups}
    if len({factor for _, factor, _ in groups}) > 1 and kinds & {"chunk", "state"}:
        scenario[0]["engine"]["enable_prefix_caching"] = False  # refused by vLLM, or not simulated
    assert_equal(scenario[0], groups, scenario[1])


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("groups", [TWO, THREE, ALIKE, MIXED, CHUNKS, STATES])
def test_steps_are_planned_with_what_members_give_back(
    taken: Counter[str],  # noqa: F811
    groups: Groups,
    is_async: bool,
) -> None:
    assert_equal(crowd(async_scheduling=is_async, enable_prefix_caching=groups is not STATES), groups)
    assert taken["planned steps"] > taken["single steps"]
    assert taken["planned drops"] >= 20 or groups in (CHUNKS, STATES)
    assert taken["reference replicas"] == 1, "that of the run to compare with"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("groups", [TWO, THREE, ALIKE, MIXED, CHUNKS, STATES])
def test_under_pressure_requests_are_served_one_by_one_and_preempted(
    taken: Counter[str],  # noqa: F811
    groups: Groups,
    is_async: bool,
) -> None:
    assert_equal(crowd(SHORT, async_scheduling=is_async, enable_prefix_caching=False, **TIGHT), groups)
    assert taken["one by one"] >= 20
    assert taken["preempted"] >= 5
    assert taken["reference replicas"] == 1, "that of the run to compare with"


def test_a_preempted_request_that_may_find_its_blocks_is_left_to_the_reference(
    taken: Counter[str],  # noqa: F811
) -> None:
    assert_equal(crowd(SHORT, **TIGHT), TWO)
    assert taken["preempted"] == 1
    assert taken["reference replicas"] == 2


def test_a_model_with_windows_in_some_layers_is_taken_by_the_fast_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its config.json on: a block less for every request where the window is not looked up would show."""
    config = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 256,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    replicas: list[Any] = []
    real = simulate._check_nothing_lost

    def spy(gateway: Any) -> None:
        real(gateway)
        replicas.extend(gateway.replicas)

    monkeypatch.setattr(simulate, "_check_nothing_lost", spy)
    runs = []
    for stepping in ("fast", "reference"):
        stream = io.StringIO()
        simulate.simulate_cluster(load(crowd(model=str(path), stepping=stepping)), decisions=stream)
        runs.append(stream.getvalue())
    assert runs[0] == runs[1]
    assert type(replicas[0]) is WindowReplica
    assert [group.kind for group in replicas[0].settings.kv_groups] == ["window", "full"]


def test_cached_states_are_the_references() -> None:
    states = (KvGroup("full", 16), KvGroup("state", 16))
    given = SchedulerSettings(num_gpu_blocks=100, kv_groups=states)
    assert "states are cached" in str(why_not(given, Fcfs()))
    assert why_not(replace(given, enable_prefix_caching=False), Fcfs()) is None
    chunks = replace(given, kv_groups=(KvGroup("chunk", 16, 64), KvGroup("window", 16, 64)))
    assert "count as cached" in str(why_not(chunks, Fcfs()))
    others = (KvGroup("latent", 16), KvGroup("window", 32, 64), KvGroup("chunk", 16, 64))
    assert why_not(replace(given, kv_groups=others), Fcfs()) is None
