"""Loading: files, overrides, seeds, places, and that nothing but an InputError ever comes out."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.checks.all_checks import check_all
from sim.checks.loading import from_scenario, load_data, load_scenario
from sim.errors import InputError
from sim.scenario.messages import nearest_of
from sim.scenario.schema import NamedSpec, Scenario

TEXT = """\
name: x
workload:
  requests: 1e2
  arrival: {process: poisson, rate: 4}
  input_tokens: {dist: fixed, value: 512}
  output_tokens: {dist: fixed, value: 128}
engine:
  model: llama-2-7b
  gpu: a100-80gb-sxm
  policy: hybrid
  gpu_memory_utilization: 0.9
"""
DATA: dict[str, Any] = {
    "name": "x",
    "workload": {
        "requests": 100,
        "arrival": {"process": "poisson", "rate": 4},
        "input_tokens": {"dist": "quantiles", "points": [[0, 1], [1, 100]]},
        "output_tokens": {"dist": "fixed", "value": 128},
        "classes": [{"name": "a", "share": 1}, {"name": "b", "share": 1.5, "sessions": {"turns": 2}}],
    },
    "cluster": {"replicas": 2},
    "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "policy": {"name": "hybrid", "latency_weight": 0.5}},
    "latency": {"kind": "constant", "step_s": 0.01},
    "slo": {"ttft_p95_ms": 500},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.yaml"
    file.write_text(TEXT)
    return file


def said(call: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return [str(problem) for problem in caught.value.problems]


def test_loads(path: Path) -> None:
    loaded = load_scenario(path)
    assert loaded.scenario.workload.requests == 100
    assert type(loaded.scenario.workload.requests) is int
    assert (loaded.path, loaded.base_dir) == (path, path.parent)
    assert loaded.position(("engine", "model")) == (8, 10)
    assert loaded.position(("engine", "block_size")) == loaded.position(("engine",)), "not written: its section"
    assert str(loaded.problem(("engine", "gpu"), "no")) == f"{path}:9:8: no"
    check_all(loaded)
    assert loaded.notes == []


def test_overrides(path: Path) -> None:
    loaded = load_scenario(
        path,
        [
            "workload.requests=5",
            "workload.requests=1e1",
            "cluster.replicas=3",
            "engine.policy.latency_weight=0.25",
            "engine.model=llama-3.1-8b",
            "workload.classes=[{name: a, share: 1}, {name: b, share: 1}]",
            "workload.classes.1.share=2.5",
            "slo.ttft_p95_ms=500",
            "workload.input_tokens={dist: values, values: [1, 2]}",
            "workload.input_tokens.values.1=7",
        ],
        seed=9,
    )
    scenario = loaded.scenario
    assert scenario.workload.requests == 10
    assert scenario.cluster.replicas == 3
    assert scenario.engine.policy == NamedSpec(name="hybrid", latency_weight=0.25)
    assert scenario.engine.model == "llama-3.1-8b"
    assert [entry.share for entry in scenario.workload.classes or ()] == [1.0, 2.5]
    assert scenario.slo is not None
    assert scenario.slo.ttft_p95_ms == 500
    assert scenario.workload.input_tokens is not None
    assert scenario.workload.input_tokens.model_dump()["values"] == [1, 7]
    assert scenario.seed == 9
    assert loaded.position(("engine", "model")) == (None, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.modl=x", "unknown key `modl` in `engine`; did you mean `model`?"),
        ("workload.arrival.rate=.nan", "`workload.arrival.rate` is .nan; it must be a finite number above 0"),
        ("workload.arrival.rate.x=1", "`workload.arrival.rate` is 4, so `x` cannot be set in it"),
        ("engine..x=1", "expected --set dotted.key=value, for example --set engine.max_num_seqs=64"),
        ("engine.gpu", "expected --set dotted.key=value, for example --set engine.max_num_seqs=64"),
        ("engine.gpu=", "`engine.gpu` is empty; it must be text; give a value, or leave the key out"),
        ("slo={a: 1, a: 2}", "key `a` is already given in line 1; keep one of the two"),
    ],
)
def test_bad_overrides(path: Path, override: str, message: str) -> None:
    assert said(lambda: load_scenario(path, [override])) == [f"--set {override}: {message}"]


def test_list_positions(path: Path) -> None:
    first = "workload.classes=[{name: a, share: 1}]"
    for step in ("1", "x", "-1"):
        override = f"workload.classes.{step}.share=1"
        message = f"`workload.classes` is a list; give the position of an item (0 to 0), not `{step}`"
        assert said(lambda override=override: load_scenario(path, [first, override])) == [
            f"--set {override}: {message}"
        ]


def test_an_override_can_repair_the_file(path: Path) -> None:
    path.write_text(TEXT.replace("rate: 4", "rate: -4"))
    assert load_scenario(path, ["workload.arrival.rate=4"]).scenario.workload.requests == 100
    path.write_text(TEXT + "cluster:\n")
    assert load_scenario(path, ["cluster.replicas=2"]).scenario.cluster.replicas == 2


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(TEXT)
    (tmp_path / "binary.yaml").write_bytes(b"\x7fELF\x00\x01")
    (tmp_path / "latin.yaml").write_bytes("name: caf\u00e9".encode("latin-1"))
    cases = {
        "quickstrat.yaml": "no such scenario file; did you mean `quickstart.yaml`?",
        "binnacle-notes.yaml": "no such scenario file",  # alike in their endings alone
        "none/x.yaml": f"no such scenario file; there is no folder {tmp_path / 'none'} either",
        "": "a directory; give the scenario file in it",
        "binary.yaml": "not a text file; a scenario is YAML in UTF-8",
        "latin.yaml": "not a text file; a scenario is YAML in UTF-8",
    }
    for name, message in cases.items():
        assert said(lambda name=name: load_scenario(tmp_path / name)) == [f"{tmp_path / name}: {message}"]


def test_byte_order_mark_and_crlf(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert load_scenario(path).position(("engine", "model")) == (8, 10)


def test_the_scenario_given_is_not_changed() -> None:
    before = copy.deepcopy(DATA)
    load_data(DATA, ["workload.requests=5"], seed=3)
    assert before == DATA


def test_without_a_file_problems_have_no_place() -> None:
    assert said(lambda: load_data({**DATA, "seed": -1})) == ["`seed` is -1; it must be a whole number, at least 0"]
    too_low = {**DATA, "workload": {**DATA["workload"], "priority": -(10**12)}}
    assert said(lambda: load_data(too_low))[0].endswith("it must be a whole number from -1000000000 to 1000000000")
    changed = load_data(DATA).scenario.model_dump()
    changed["latency"]["step_s"] = None
    (message,) = said(lambda: from_scenario(Scenario.model_validate(changed)))
    assert message.startswith("`latency.kind: constant` needs `step_s`")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["poisson", "fixed", "values", "stages", "fcfs", "hybrid", "name", "a:b", "..", "x:"]),
    st.lists(st.one_of(st.integers(), st.lists(st.floats(), max_size=3)), max_size=3),
    st.dictionaries(
        st.sampled_from(["process", "dist", "name", "turns", "values", "stages", "x"]), st.text(max_size=3)
    ),
)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in ``data``."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [(data, key) for key, _ in items] + [place for _, value in items for place in places(value)]


@given(st.lists(st.tuples(st.randoms(use_true_random=False), JUNK), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_nonsense_is_refused_in_words(changes: list[tuple[random.Random, Any]]) -> None:
    """Whatever stands where: it loads, or an InputError says why, one line each."""
    data = copy.deepcopy(DATA)
    for chance, junk in changes:
        container, key = chance.choice(places(data))
        if isinstance(container, dict) and chance.random() < 0.3:
            container[chance.choice(["unknown", "values", "stages", "rate", "engine"])] = junk
        elif isinstance(container, dict) and chance.random() < 0.2:
            del container[key]
        else:
            container[key] = junk
        if not places(data):
            return
    try:
        check_all(load_data(data))
    except InputError as error:
        for problem in error.problems:
            assert "Input should" not in problem.message
            assert problem.message


def test_loading_imports_nothing_heavy(path: Path) -> None:
    code = (
        "import sys; from sim.checks.loading import load_scenario; load_scenario(sys.argv[1]);"
        "print(*{'numpy', 'pandas', 'pyarrow', 'matplotlib', 'simpy', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("word", "known", "nearest"),
    [
        ("ttft_p96_ms", ["ttft_p95_ms", "ttft_p99_ms", "ttft_mean_ms"], None),
        ("tfft_p95_ms", ["ttft_p95_ms", "ttft_p99_ms"], "ttft_p95_ms"),
        ("max_num_seq", ["max_num_seqs", "max_model_len"], "max_num_seqs"),
        ("disable_hybrid_kv_cache_manager", ["kv", "gpu"], None),
    ],
)
def test_another_number_is_another_name(word: str, known: list[str], nearest: str | None) -> None:
    assert nearest_of(word, known) == nearest
