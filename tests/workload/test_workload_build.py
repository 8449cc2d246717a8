"""build_workload: classes, prefixes, conversations, closed loops, traces and presets as one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.scenario.schema import WorkloadConfig
from sim.workload.build_table import build_workload
from sim.workload.table import NO_GROUP, NO_HINT, NO_PARENT, RequestTable

NS = 1_000_000_000
POISSON = {"process": "poisson", "rate": 4.0}
SLOW = {"process": "constant", "rate": 1.0}
LENGTHS = {
    "input_tokens": {"dist": "uniform", "low": 50, "high": 150},
    "output_tokens": {"dist": "exponential", "mean": 20},
}
COLUMNS = (
    "arrival_ns", "input_tokens", "output_tokens", "max_tokens", "priority", "class_index", "parent", "deadline_ns",
    "expected_output_tokens", "session",
)  # fmt: skip


def build(seed: int = 0, base_dir: Path = Path("."), max_model_len: int | None = None, **workload: Any) -> RequestTable:
    return build_workload(WorkloadConfig(**workload), seed, base_dir, max_model_len)


def fixed(value: int) -> dict[str, Any]:
    return {"dist": "fixed", "value": value}


def values(*lengths: int) -> dict[str, Any]:
    return {"dist": "values", "values": list(lengths)}


def refused(**workload: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        build(**workload)
    return [problem.message for problem in caught.value.problems]


def segments(table: RequestTable, row: int) -> list[tuple[int, int]]:
    low, high = table.segment_offsets[row : row + 2]
    ids, ends = table.segment_content_id[low:high], table.segment_end_tokens[low:high]
    return list(zip(ids.tolist(), ends.tolist(), strict=True))


def same(a: RequestTable, b: RequestTable, *columns: str) -> bool:
    return all(getattr(a, name).tolist() == getattr(b, name).tolist() for name in columns)


# --- one class -------------------------------------------------------------------------------


def test_a_plain_workload() -> None:
    table = build(requests=500, arrival=POISSON, **LENGTHS)
    assert len(table) == 500
    assert [(c.name, c.tenant, c.tier, c.slo) for c in table.classes] == [("default", "default", "default", None)]
    assert set(table.parent.tolist()) == {NO_PARENT}
    assert set(table.session.tolist()) == {NO_GROUP}
    assert set(table.expected_output_tokens.tolist()) == {NO_HINT}
    assert set(table.deadline_ns.tolist()) == {-1}
    assert table.max_tokens.tolist() == table.output_tokens.tolist()
    assert table.segment_offsets.tolist() == [0] * 501
    assert table.request_id(7) == "7"
    assert table.closed_loop_concurrency is table.release_until_ns is None
    assert table.notes == []


def test_same_seed_same_table_other_seed_another() -> None:
    one, two, other = (build(seed, requests=50, arrival=POISSON, **LENGTHS) for seed in (1, 1, 2))
    assert same(one, two, *COLUMNS)
    for name in ("arrival_ns", "input_tokens", "output_tokens"):
        assert not same(one, other, name)


def test_each_quantity_has_its_own_stream() -> None:
    base = {"requests": 200, "arrival": POISSON, **LENGTHS}
    table = build(**base)
    assert same(table, build(**base | {"arrival": SLOW}), "input_tokens", "output_tokens")
    assert same(table, build(**base | {"input_tokens": fixed(9)}), "arrival_ns", "output_tokens")
    assert same(table, build(**base | {"output_tokens": fixed(9)}), "arrival_ns", "input_tokens")
    assert same(table, build(**base, prefix={"groups": 3, "tokens": 10}), *COLUMNS)
    assert same(table, build(**base, max_tokens=fixed(10_000)), "arrival_ns", "input_tokens", "output_tokens")


def test_class_fields_reach_the_table() -> None:
    table = build(
        requests=3, arrival=SLOW, **LENGTHS, tenant="acme", tier="gold", priority=-2, deadline_s=1.5,
        slo={"ttft_p95_ms": 300},
    )  # fmt: skip
    (info,) = table.classes
    assert (info.tenant, info.tier, info.slo) == ("acme", "gold", {"ttft_p95_ms": 300.0})
    assert table.priority.tolist() == [-2] * 3
    assert table.deadline_ns.tolist() == [1_500_000_000] * 3
    assert build(requests=1, arrival=SLOW, **LENGTHS, tenant="acme").classes[0].tier == "acme"


def test_max_tokens_ends_longer_outputs() -> None:
    table = build(requests=4, arrival=SLOW, input_tokens=fixed(5), output_tokens=values(10, 30), max_tokens=fixed(20))
    assert table.output_tokens.tolist() == [10, 20, 10, 20]
    assert table.max_tokens.tolist() == [20] * 4
    assert table.notes == ["class default: some outputs are cut short by max_tokens"]


def test_prefix_groups_share_the_shorter_of_prefix_and_prompt() -> None:
    table = build(
        requests=6000, arrival=POISSON, input_tokens=values(60, 140), output_tokens=fixed(1),
        prefix={"groups": 3, "tokens": 100},
    )  # fmt: skip
    assert segments(table, 0)[0][1] == 60
    assert segments(table, 1)[0][1] == 100
    counts = np.bincount(table.segment_content_id)
    assert len(counts) == 3
    assert counts == pytest.approx([2000] * 3, abs=4 * np.sqrt(6000 * 2 / 9))


def test_closed_loop() -> None:
    loop = {"process": "closed_loop", "concurrency": 3, "think_time_s": 2.0}
    table = build(requests=5, arrival=loop, **LENGTHS)
    assert table.closed_loop_concurrency == 3
    assert table.arrival_ns.tolist() == [0, 0, 0, 2 * NS, 2 * NS]
    assert set(table.parent.tolist()) == {NO_PARENT}
    assert table.release_until_ns is None
    timed = build(duration_s=30, arrival=loop, **LENGTHS)
    assert timed.release_until_ns == 30 * NS
    assert len(timed) >= 3 * 30 / 2
    assert "closed loop over duration_s alone" in timed.notes[0]
    shared = build(requests=40, arrival=loop, **LENGTHS, classes=[{"name": "a", "share": 1}, {"name": "b", "share": 1}])
    assert shared.arrival_ns.tolist() == [0] * 3 + [2 * NS] * 37
    assert 0 < np.diff(shared.class_index).tolist().count(1) < 39  # mixed, not one class after the other


# --- conversations ---------------------------------------------------------------------------


def test_a_turn_opens_with_the_whole_conversation_so_far() -> None:
    table = build(
        requests=5, arrival=SLOW, input_tokens=values(10, 20, 30), output_tokens=values(5, 6, 7),
        sessions={"turns": 3, "think_time_s": 1.5}, prefix={"groups": 1, "tokens": 15},
    )  # fmt: skip
    # Second conversation: own inputs 10, 20 (cut to two turns by `requests`).
    assert table.input_tokens.tolist() == [10, 10 + 5 + 20, 10 + 5 + 20 + 6 + 30, 10, 35]
    assert table.output_tokens.tolist() == [5, 6, 7, 5, 6]
    assert table.arrival_ns.tolist() == [0, 1_500_000_000, 1_500_000_000, NS, 1_500_000_000]
    assert table.parent.tolist() == [-1, 0, 1, -1, 3]
    assert table.session.tolist() == [0, 0, 0, 1, 1]
    # The first prompt is shorter than the prefix: what follows it in the conversation is its own.
    assert [segments(table, row) for row in range(5)] == [[(0, 10)]] * 5


def test_a_conversation_ends_at_max_model_len() -> None:
    workload = {"arrival": SLOW, "input_tokens": fixed(40), "output_tokens": fixed(10), "sessions": {"turns": 5}}
    table = build(max_model_len=141, requests=6, **workload)
    assert table.input_tokens.tolist() == [40, 90, 140] * 2  # the next would be 190
    assert "end early, at max_model_len (141)" in table.notes[0]
    assert build(max_model_len=140, requests=4, **workload).input_tokens.tolist() == [40, 90] * 2
    # A first prompt that is too long is the engine's to reject.
    assert build(max_model_len=20, requests=2, **workload).input_tokens.tolist() == [40, 40]
    assert build(max_model_len=150, requests=3, **workload).notes == []


def test_outputs_that_max_model_len_cuts_short_are_noted() -> None:
    workload = {"arrival": SLOW, "input_tokens": fixed(40), "output_tokens": {"dist": "values", "values": [10, 11, 12]}}
    assert build(max_model_len=50, requests=6, **workload).notes == ["max_model_len (50) cuts 4 outputs short"]
    assert build(max_model_len=52, requests=6, **workload).notes == []
    # A prompt that does not fit is rejected, which is told elsewhere.
    assert build(max_model_len=40, requests=6, **workload).notes == []


def test_conversations_without_end_stop_at_max_model_len() -> None:
    workload = {"arrival": SLOW, "input_tokens": fixed(40), "output_tokens": fixed(10), "sessions": {"turns": 10**9}}
    assert build(max_model_len=141, requests=6, **workload).input_tokens.tolist() == [40, 90, 140] * 2
    with pytest.raises(InputError, match=r"sessions\.turns: these conversations would have .* the limit is 50,000,000"):
        build(requests=None, duration_s=60.0, **workload)


def test_what_is_said_when_nothing_arrives() -> None:
    lengths = {"input_tokens": fixed(40), "output_tokens": fixed(10)}
    with pytest.raises(InputError, match="within `duration_s`; give a longer one or"):
        build(requests=None, duration_s=1e-9, arrival=POISSON, **lengths)
    stages = {"process": "stages", "stages": [{"rate": 1.0, "duration_s": 1e-9}]}
    with pytest.raises(InputError, match="within the arrival's stages; give longer ones or"):
        build(requests=None, arrival=stages, **lengths)


def test_random_turns_fill_exactly_the_requests() -> None:
    turns = {"dist": "uniform", "low": 1, "high": 6}
    workload = {"arrival": POISSON, **LENGTHS, "sessions": {"turns": turns}}
    table = build(requests=1000, max_model_len=300, **workload)
    assert len(table) == 1000
    more = build(requests=1500, max_model_len=300, **workload)
    assert more.input_tokens[:1000].tolist() == table.input_tokens.tolist()
    lengths = np.bincount(build(duration_s=4000, **workload).session)
    assert np.mean(lengths) == pytest.approx(3.5, abs=0.1)


def test_sessions_of_one_turn_are_a_plain_workload_with_conversation_numbers() -> None:
    plain = build(requests=50, arrival=POISSON, **LENGTHS)
    single = build(requests=50, arrival=POISSON, **LENGTHS, sessions={"turns": 1})
    assert same(plain, single, "arrival_ns", "input_tokens", "output_tokens", "parent")
    assert single.session.tolist() == list(range(50))


# --- classes ---------------------------------------------------------------------------------


def test_shares_divide_the_workloads_arrivals() -> None:
    table = build(
        requests=20_000, arrival=POISSON, **LENGTHS, priority=1, deadline_s=9,
        classes=[
            {"name": "chat", "share": 3, "tenant": "x"},
            {"name": "batch", "share": 1, "priority": 5, "output_tokens": fixed(777), "deadline_s": 60},
        ],
    )  # fmt: skip
    batch = table.class_index == 1
    assert batch.mean() == pytest.approx(0.25, abs=0.013)
    assert np.all(np.diff(table.arrival_ns) >= 0)
    assert set(table.output_tokens[batch].tolist()) == {777}
    assert table.priority[batch].max() == table.priority[batch].min() == 5
    assert set(table.priority[~batch].tolist()) == {1}
    assert set(table.deadline_ns[~batch].tolist()) == {9 * NS}
    assert set(table.deadline_ns[batch].tolist()) == {60 * NS}
    assert [c.tenant for c in table.classes] == ["x", "default"]
    assert table.arrival_ns.tolist() == build(requests=20_000, arrival=POISSON, **LENGTHS).arrival_ns.tolist()


def test_changing_one_class_leaves_the_others_requests() -> None:
    def chat(batch_tokens: int) -> list[tuple[int, int, int]]:
        table = build(
            requests=400, arrival=POISSON, **LENGTHS,
            classes=[{"name": "chat", "share": 1}, {"name": "batch", "share": 1, "input_tokens": fixed(batch_tokens)}],
        )  # fmt: skip
        rows = table.class_index == 0
        columns = (table.arrival_ns[rows], table.input_tokens[rows], table.output_tokens[rows])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    assert chat(10) == chat(5000)


def test_own_arrivals_are_merged_by_time_and_the_total_is_cut() -> None:
    classes = [
        {"name": "a", "arrival": {"process": "constant", "rate": 1.0}},
        {"name": "b", "arrival": {"process": "constant", "rate": 2.0}, "requests": 4},
        {"name": "late", "arrival": {"process": "burst", "at_s": 3.0}, "requests": 2, "tier": "gold"},
    ]
    table = build(requests=10, **LENGTHS, classes=classes)
    assert table.arrival_ns.tolist() == [int(s * NS) for s in (0, 0, 0.5, 1, 1, 1.5, 2, 3, 3, 3)]
    assert [table.classes[k].name for k in table.class_index] == [
        "a",
        "b",
        "b",
        "a",
        "b",
        "b",
        "a",
        "a",
        "late",
        "late",
    ]
    assert table.classes[2].tier == "gold"
    assert len(build(duration_s=4, **LENGTHS, classes=classes)) == 4 + 4 + 2


def test_conversations_of_several_classes_stay_whole() -> None:
    classes = [
        {"name": "a", "arrival": SLOW, "sessions": {"turns": 2, "think_time_s": 9}},
        {"name": "b", "arrival": SLOW, "sessions": {"turns": 3}},
        {"name": "c", "arrival": SLOW},
    ]
    table = build(requests=11, **LENGTHS, classes=classes)
    assert table.class_index.tolist() == [0, 0, 1, 1, 1, 2, 0, 0, 1, 1, 1]
    assert table.parent.tolist() == [-1, 0, -1, 2, 3, -1, -1, 6, -1, 8, 9]
    assert [s for s in table.session.tolist() if s != NO_GROUP] == [
        *[table.session[0]] * 2, *[table.session[2]] * 3, *[table.session[6]] * 2, *[table.session[8]] * 3,
    ]  # fmt: skip
    assert len({table.session[k] for k in (0, 2, 6, 8)}) == 4


def test_prefixes_of_classes_are_their_own_and_the_workloads_is_common() -> None:
    prefix = {"groups": 1, "tokens": 10}
    common = build(
        requests=50, arrival=POISSON, **LENGTHS, prefix=prefix,
        classes=[{"name": "a", "share": 1}, {"name": "b", "share": 1}, {"name": "c", "share": 1, "prefix": prefix}],
    )  # fmt: skip
    ids = {common.classes[k].name: {segments(common, row)[0][0] for row in np.flatnonzero(common.class_index == k)}
           for k in range(3)}  # fmt: skip
    assert ids["a"] == ids["b"]
    assert len(ids["a"]) == len(ids["c"]) == 1
    assert ids["a"] != ids["c"]


# --- presets and traces ----------------------------------------------------------------------


def test_preset_alone_has_the_traces_size_and_rate() -> None:
    table = build(preset="azure-conv-2023")
    assert len(table) == 19_366
    assert table.arrival_ns[-1] / NS == pytest.approx(19_366 / 5.53, rel=0.05)
    assert table.output_tokens.mean() == pytest.approx(211, rel=0.03)


def test_preset_with_other_arrivals_and_lengths() -> None:
    plain = build(preset="azure-conv-2023", requests=1000)
    faster = build(preset="azure-conv-2023", requests=1000, arrival={"process": "constant", "rate": 100.0})
    assert same(plain, faster, "input_tokens", "output_tokens")
    assert faster.arrival_ns[-1] == 999 * NS // 100
    mixed = build(preset="azure-conv-2023", requests=1000, output_tokens=fixed(3))
    assert same(plain, mixed, "arrival_ns", "input_tokens")
    assert set(mixed.output_tokens.tolist()) == {3}
    assert len(build(preset="sharegpt", arrival=POISSON)) == 10_000
    assert refused(preset="sharegpt") == [
        "workload: preset sharegpt has lengths only; give an `arrival`, e.g. {process: poisson, rate: 4}"
    ]


def test_mooncake_preset_opens_with_its_common_tokens() -> None:
    table = build(preset="mooncake-conversation", requests=100)
    assert {segments(table, row)[0] for row in range(100)} == {(0, 512)}
    assert len(table.notes) == 1
    own = build(preset="mooncake-conversation", requests=1, prefix={"groups": 1, "tokens": 7})
    assert segments(own, 0) == [(0, 7)]


def generic(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"input_tokens": 50, "output_tokens": 5} | r) for r in rows))
    return {"path": "t.jsonl", "format": "generic"}


def test_trace_columns_override_the_workloads_values(tmp_path: Path) -> None:
    trace = generic(
        tmp_path,
        {"arrival_s": 0, "tenant": "gold", "priority": 7, "request_id": "x", "session": "s",
         "expected_output_tokens": 3},
        {"arrival_s": 1, "session": "s", "input_tokens": 60},
        {"arrival_s": 2, "tenant": "free"},
    )  # fmt: skip
    table = build(base_dir=tmp_path, trace=trace, priority=4, deadline_s=2, tenant="house", slo={"ttft_p99_ms": 9})
    assert table.priority.tolist() == [7, 4, 4]
    assert [table.classes[k].tenant for k in table.class_index] == ["gold", "house", "free"]
    assert [table.classes[k].tier for k in table.class_index] == ["gold", "house", "free"]
    assert {tuple((info.slo or {}).items()) for info in table.classes} == {(("ttft_p99_ms", 9.0),)}
    assert table.session.tolist() == [0, 0, NO_GROUP]
    assert table.parent.tolist() == [NO_PARENT] * 3  # a trace's turns keep their own times
    assert table.expected_output_tokens.tolist() == [3, NO_HINT, NO_HINT]
    assert table.deadline_ns.tolist() == [2 * NS] * 3
    assert [table.request_id(row) for row in range(3)] == ["x", "1", "2"]


def test_trace_limits_prefix_and_unused_settings(tmp_path: Path) -> None:
    trace = generic(tmp_path, *({"arrival_s": k} for k in range(10)))
    assert len(build(base_dir=tmp_path, trace=trace, requests=4)) == 4
    assert len(build(base_dir=tmp_path, trace=trace, duration_s=3)) == 3
    table = build(base_dir=tmp_path, trace=trace, prefix={"groups": 1, "tokens": 20}, max_tokens=fixed(2))
    assert [segments(table, row) for row in range(10)] == [[(0, 20)]] * 10
    assert set(table.output_tokens.tolist()) == {2}
    shared = generic(tmp_path, {"arrival_s": 0, "prefix_group": "g", "prefix_tokens": 8})
    own = build(base_dir=tmp_path, trace=shared, prefix={"groups": 1, "tokens": 20})
    assert segments(own, 0) == [(0, 8)]
    assert own.notes == ["workload.prefix is not used: the trace has shared prefixes of its own"]


def test_a_trace_and_a_generated_class_together(tmp_path: Path) -> None:
    trace = generic(
        tmp_path,
        {"arrival_s": 0.5, "request_id": "x", "prefix_group": "g", "prefix_tokens": 8, "session": "s"},
        {"arrival_s": 1.5, "request_id": "y"},
    )
    table = build(
        base_dir=tmp_path, requests=4,
        classes=[
            {"name": "recorded", "trace": trace},
            {"name": "made", "arrival": SLOW, **LENGTHS, "prefix": {"groups": 1, "tokens": 5},
             "sessions": {"turns": 1}},
        ],
    )  # fmt: skip
    assert table.arrival_ns.tolist() == [0, NS // 2, NS, 3 * NS // 2]
    assert table.request_ids == ["made/0", "recorded/x", "made/1", "recorded/y"]
    assert segments(table, 3) == []
    assert segments(table, 0)[0][0] == segments(table, 2)[0][0] != segments(table, 1)[0][0]
    assert len(set(table.session[:3].tolist())) == 3
    assert table.session[3] == NO_GROUP


def test_mooncake_trace_shares_what_its_hashes_share(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [40, 41, 42]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 5, "hash_ids": [40, 43]},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = build(base_dir=tmp_path, trace={"path": "m.jsonl", "format": "mooncake"})
    assert segments(table, 0) == [(40, 512), (41, 1024), (42, 1100)]
    assert segments(table, 1) == [(40, 512), (43, 1024)]


# --- refusals --------------------------------------------------------------------------------


def test_everything_missing_is_said_at_once() -> None:
    assert refused() == [
        "workload: no `input_tokens` (and no `trace` or `preset`), so nothing says how long requests are",
        "workload: no `output_tokens` (and no `trace` or `preset`), so nothing says how long requests are",
        "workload: no `arrival` (and no `trace` or `preset`), so nothing says when requests come",
    ]


LOOP = {"process": "closed_loop", "concurrency": 2}
TRACE = {"path": "x", "format": "azure"}


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"arrival": POISSON, **LENGTHS}, "never ends by itself"),
        ({"trace": TRACE, "arrival": POISSON}, "workload: `trace` and `arrival` exclude each other"),
        ({"trace": TRACE, "sessions": {"turns": 2}}, "workload: `trace` and `sessions` exclude each other"),
        ({"preset": "azure"}, "workload.preset: there is no preset 'azure'"),
        ({"requests": 5, "arrival": LOOP, **LENGTHS, "sessions": {"turns": 2}}, "combined with a closed loop"),
        ({"preset": "sharegpt", "arrival": POISSON, "input_tokens": {"dist": "uniform", "low": 9, "high": 1}}, "swap"),
        ({"duration_s": 1e-6, "arrival": POISSON, **LENGTHS}, "no request arrives within `duration_s`"),
        ({"requests": 5, **LENGTHS, "classes": [{"name": "a"}]}, "workload.classes[0] (a): give `share`"),
        (
            {"requests": 5, "arrival": POISSON, **LENGTHS, "classes": [{"name": "a", "share": 1, "arrival": SLOW}]},
            "`share` and `arrival` exclude each other",
        ),
        (
            {"requests": 5, "arrival": POISSON, **LENGTHS, "classes": [{"name": "a", "share": 1}] * 2},
            "two classes are named 'a'",
        ),
        (
            {"requests": 5, **LENGTHS, "classes": [{"name": "a", "arrival": LOOP}, {"name": "b", "arrival": SLOW}]},
            "a closed loop cannot be mixed",
        ),
        ({"trace": TRACE, "classes": [{"name": "a", "arrival": SLOW, **LENGTHS}]}, "give the trace to one of the"),
        ({"requests": 5, **LENGTHS, "classes": [{"name": "a", "share": 1}]}, "workload: no `arrival`"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(workload: dict[str, Any], message: str) -> None:
    found = refused(**workload)
    assert len(found) == 1
    assert message in found[0]


def test_an_unused_workload_arrival_is_noted() -> None:
    table = build(requests=5, arrival=POISSON, **LENGTHS, classes=[{"name": "a", "arrival": SLOW}])
    assert table.notes == ["workload.arrival is not used: no class has a `share` of it"]


# --- invariants ------------------------------------------------------------------------------

CLASS = st.fixed_dictionaries(
    {},
    optional={
        "share": st.floats(0.1, 5),
        "prefix": st.fixed_dictionaries({"groups": st.integers(1, 4), "tokens": st.integers(1, 200)}),
        "sessions": st.fixed_dictionaries(
            {"turns": st.integers(1, 4) | st.just({"dist": "uniform", "low": 1, "high": 5})},
            optional={"think_time_s": st.floats(0, 3)},
        ),
        "requests": st.integers(1, 40),
        "max_tokens": st.just(fixed(15)),
    },
)


@settings(max_examples=80, deadline=None)
@given(
    entries=st.lists(CLASS, min_size=1, max_size=3),
    requests=st.integers(1, 60),
    max_model_len=st.none() | st.integers(20, 600),
    seed=st.integers(0, 2**40),
)
def test_every_table_keeps_the_contract(
    entries: list[dict[str, Any]], requests: int, max_model_len: int | None, seed: int
) -> None:
    classes = []
    for number, entry in enumerate(entries):
        own = {} if "share" in entry else {"arrival": {"process": "gamma", "rate": 3.0, "cv": 4.0}}
        kept = {key: value for key, value in entry.items() if not ("share" in entry and key == "requests")}
        classes.append({"name": f"c{number}", **kept, **own})
    table = build(seed, Path("."), max_model_len, requests=requests, arrival=POISSON, **LENGTHS, classes=classes)
    n = len(table)
    assert n <= requests
    if not any("requests" in entry for entry in classes):
        assert n == requests
    for name in COLUMNS:
        assert getattr(table, name).shape == (n,)
        assert getattr(table, name).dtype == np.int64
    for name in ("input_tokens", "output_tokens", "max_tokens"):
        assert np.all(getattr(table, name) >= 1)
    assert np.all(table.output_tokens <= table.max_tokens)
    roots = table.parent == NO_PARENT
    assert np.all(np.diff(table.arrival_ns[roots]) >= 0)
    for row in np.flatnonzero(~roots).tolist():
        parent = int(table.parent[row])
        assert parent < row
        assert table.session[parent] == table.session[row] != NO_GROUP
        assert table.input_tokens[row] > table.input_tokens[parent] + table.output_tokens[parent]
        assert segments(table, row) == segments(table, parent)
        if max_model_len is not None:
            assert table.input_tokens[row] < max_model_len
    assert len(table.segment_offsets) == n + 1
    assert table.segment_offsets[-1] == len(table.segment_content_id) == len(table.segment_end_tokens)
    for row in range(n):
        ends = [end for _, end in segments(table, row)]
        assert ends == sorted(ends)
        assert all(0 < end <= table.input_tokens[row] for end in ends)
