"""Whatever the fast engine does not know is the reference's: settings, hooks of a policy, the reference itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

from policies.base import RequestView
from policies.fcfs import Fcfs
from policies.sjf import Sjf
from sim.cluster import simulate
from sim.cluster.deployment import resolve_deployment
from sim.engine.fast import allowed
from sim.engine.reference import scheduler as scheduler_module
from sim.engine.reference.batch import Batch, SchedulerSettings, Step
from sim.engine.reference.kv_cache import KVCache, PrefixKVCache
from sim.engine.reference.scheduler import Scheduler
from sim.engine.reference.seats import Seats
from sim.engine.reference.steering import Steering
from sim.results.record import RunRecord
from sim.run import load
from sim.scenario.schema import EngineConfig

PLAIN = SchedulerSettings(num_gpu_blocks=100)
ONE_BY_ONE = "steps are taken one by one: "
RENEW = "look at what the fast engine does there, run the tests of equality, put in what python -m {} prints"


def document(policy: Any = "fcfs") -> dict[str, Any]:
    """A crowd: 24 requests at once."""
    workload = {
        "requests": 24,
        "arrival": {"process": "burst"},
        "input_tokens": {"dist": "fixed", "value": 50},
        "output_tokens": {"dist": "fixed", "value": 60},
    }
    engine = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "policy": policy}
    return {"name": "allowed", "workload": workload, "engine": engine}


def surprise_of(settings: SchedulerSettings = PLAIN, policy: Any = None, *keys: str) -> str | None:
    return allowed.surprise(settings, policy or Fcfs(), keys, Scheduler)


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replicas of the reference that were built."""
    built: list[int] = []
    real = simulate.Replica

    def build(*args: Any) -> Any:
        built.append(args[1])
        return real(*args)

    monkeypatch.setattr(simulate, "Replica", build)
    return built


def notes_of(record: RunRecord) -> list[str]:
    return [note.removeprefix(ONE_BY_ONE) for note in record.notes if note.startswith(ONE_BY_ONE)]


def test_the_fast_engine_was_checked_against_this_reference() -> None:
    name = allowed.__spec__.name
    assert allowed.fingerprint() == allowed.FINGERPRINT, RENEW.format(name)


def test_the_command_prints_the_fingerprint() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "sim.engine.fast.allowed"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == allowed.FINGERPRINT


def test_a_usual_run_is_fast_and_says_nothing(references: list[int]) -> None:
    assert notes_of(simulate.simulate_cluster(load(document()))) == []
    assert not references


def test_the_list_names_what_there_is() -> None:
    """No name is left over, and each of ``EngineConfig`` was looked at."""
    settings = set(SchedulerSettings.__dataclass_fields__)
    assert settings == allowed.SETTINGS | allowed.REFUSED
    assert not allowed.SETTINGS & allowed.REFUSED
    assert set(EngineConfig.model_fields) == allowed.ENGINE_KEYS
    base = {name for name in vars(allowed.Policy) if not name.startswith("__")}
    assert base >= allowed.HOOKS
    assert set(allowed.Policy.__annotations__) | base >= allowed.ATTRIBUTES


# --- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MoreSettings(SchedulerSettings):
    """Settings of tomorrow."""

    max_num_partial_prefills: int = field(default=1)


@pytest.mark.parametrize(("value", "is_known"), [(1, True), (2, False)])
def test_an_unknown_setting_off_its_default_is_the_references(
    value: int, is_known: bool, references: list[int]
) -> None:
    loaded = load(document())
    deployment = resolve_deployment(loaded.scenario.engine, loaded.scenario.latency)
    known = {name: getattr(deployment.settings, name) for name in SchedulerSettings.__dataclass_fields__}
    more = MoreSettings(**known, max_num_partial_prefills=value)
    record = simulate.simulate_cluster(loaded, deployment=replace(deployment, settings=more))
    assert bool(references) is not is_known
    expected = [] if is_known else ["the fast engine does not know the setting max_num_partial_prefills"]
    assert notes_of(record) == expected


@pytest.mark.parametrize(("value", "is_known"), [(0, True), (7, False)])
def test_an_unknown_key_of_the_engine_off_its_default_is_the_references(
    value: int, is_known: bool, references: list[int]
) -> None:
    more: Any = create_model("MoreConfig", __base__=EngineConfig, max_num_lanes=(int, 0))
    loaded = load(document())
    engine = more(**loaded.scenario.engine.model_dump(), max_num_lanes=value)
    deployment = replace(resolve_deployment(engine, loaded.scenario.latency), engine=engine)
    record = simulate.simulate_cluster(loaded, deployment=deployment)
    assert bool(references) is not is_known
    assert notes_of(record) == ([] if is_known else ["the fast engine does not know engine.max_num_lanes"])


def test_variants_and_baselines_are_no_surprise(references: list[int]) -> None:
    chosen = document({"name": "adaptive"})
    chosen["engine"]["long_prefill_token_threshold"] = 40
    assert notes_of(simulate.simulate_cluster(load(chosen))) == []
    assert references


# --- policies ------------------------------------------------------------------------------------


class OwnVictim(Fcfs):
    """A policy with a hook that the fast engine does not ask."""

    name = "own_victim"
    called: list[int] = []

    def victim(self, running: Any, needy: RequestView) -> RequestView | None:
        self.called.append(len(running))
        return None


class PassesOver(Fcfs):
    """A policy with an attribute that the fast engine does not look at."""

    name = "passes_over"
    pass_over = True


class OwnRank(Sjf):
    """A policy with a rank of its own, which the fast engine asks for."""

    name = "own_rank"

    def rank(self, request: RequestView, now_ns: int) -> int:
        return -request.num_prompt_tokens


@pytest.mark.parametrize(("policy", "what"), [(OwnVictim, "victim"), (PassesOver, "pass_over"), (OwnRank, None)])
def test_a_hook_that_is_not_on_the_list_is_the_references(
    policy: type[Any], what: str | None, references: list[int]
) -> None:
    spec = {"name": f"{policy.__module__}:{policy.__name__}"}
    chosen = document(spec)
    chosen["engine"]["num_gpu_blocks_override"] = 120
    record = simulate.simulate_cluster(load(chosen))
    assert record.requests["num_preemptions"].sum() > 0
    assert bool(references) is (what is not None)
    assert notes_of(record) == ([] if what is None else [f"policy {policy.name} has a {what} of its own"])
    assert bool(OwnVictim.called) is (policy is OwnVictim)
    OwnVictim.called.clear()


@pytest.mark.parametrize("name", ["rank", "on_scheduled", "preempt", "step_limits", "some_hook_of_tomorrow"])
def test_what_shadows_a_hook_is_the_references(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed.Policy, "some_hook_of_tomorrow", lambda self: None, raising=False)
    policy = Fcfs()
    assert allowed.why_not(PLAIN, policy) is None
    vars(policy)[name] = lambda *_: None
    assert allowed.why_not(PLAIN, policy) == f"policy fcfs has a {name} of its own"
    assert surprise_of(PLAIN, policy) == f"policy fcfs has a {name} of its own"


# --- the reference -------------------------------------------------------------------------------


def most_running(record: RunRecord) -> int:
    return int(record.steps["num_running"].max())


def test_a_rule_in_the_references_scheduler_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 3 run: 24 would."""
    assert most_running(simulate.simulate_cluster(load(document()))) == 24
    real = Scheduler._try_admit

    def at_most_three(self: Scheduler, request: Any, step: Step) -> int:
        return 0 if len(self.running) >= 3 else real(self, request, step)

    monkeypatch.setattr(Scheduler, "_try_admit", at_most_three)
    record = simulate.simulate_cluster(load(document()))
    assert most_running(record) == 3
    assert notes_of(record) == ["Scheduler._try_admit of the reference scheduler was replaced"]


class Three(Scheduler):
    """A scheduler of one's own."""


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (KVCache, "grow"),
        (PrefixKVCache, "lookup"),
        (Seats, "most_running"),
        (Steering, "pick_victim"),
        (Batch, "count_as_computed"),
        (SchedulerSettings, "max_in_flight_tokens"),
        (scheduler_module, "build_kv_cache"),
        (scheduler_module, "Steering"),
        (simulate, "Scheduler"),
    ],
)
def test_anything_replaced_in_the_reference_is_the_references(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert surprise_of() is None
    monkeypatch.setattr(owner, name, Three if isinstance(getattr(owner, name), type) else lambda *_: None)
    found = allowed.surprise(PLAIN, Fcfs(), (), simulate.Scheduler)
    assert found is not None
    assert "was replaced" in found
    assert name in found


def test_a_changed_source_is_the_references_and_the_rule_in_it_holds(tmp_path: Path) -> None:
    """The rule is put into a copy of the project, in one line of the reference."""
    root = Path(simulate.__file__).parents[2]
    for folder in ("sim", "policies"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "sim/engine/reference/seats.py"
    text = changed.read_text()
    assert text.count("return self.max_num_seqs") == 1
    changed.write_text(text.replace("return self.max_num_seqs", "return 3"))
    script = (
        f"import sim; assert sim.__file__.startswith({str(tmp_path)!r}), sim.__file__\n"
        "from sim.run import load, run\n"
        f"record = run(load({document()!r})).record\n"
        "print(record.steps['num_running'].max(), *record.notes, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "3"
    assert f"{ONE_BY_ONE}the reference scheduler changed since the fast engine was checked against it" in lines
