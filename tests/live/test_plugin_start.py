"""What the plugin refuses when vLLM starts, and how it takes what clients send."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from real_scheduler import RealScheduler, build_scheduler
from traces import Case, CaseRequest, CaseSettings

from policies import vllm_plugin
from policies.base import Policy, PolicyError, RequestView
from policies.fcfs import Fcfs

PLUGIN = "policies.vllm_plugin.PolicyScheduler"
SETTINGS = CaseSettings(policy="priority")


class OwnVictims(Fcfs):
    """A user's policy with a victim rule."""

    name = "own_victims"
    stock_mode = None

    def victim(self, running: Any, needy: RequestView) -> RequestView | None:
        return running[0]


class NoNumber(Policy):
    """A user's policy that is broken."""

    name = "no_number"
    summary = "ranks NaN"

    def rank(self, request: RequestView, now_ns: int) -> float:
        return float("nan")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("packed", ["policy packed cannot run in vLLM", "cannot pass one over"]),
        ("{name: fair, shares: true}", ["policy fair cannot run in vLLM", "`shares` bounds a tenant's tokens"]),
        (
            "{name: tiered, shares: {premium: 0.6, standard: 0.9}}",
            ["policy tiered cannot run in vLLM", "`shares` bounds a tier's tokens"],
        ),
        (
            f"{__name__}:OwnVictims",
            [f"policy {__name__}:OwnVictims cannot run in vLLM", "chooses its own victims", "largest (rank, arrival)"],
        ),
        ("hybird", ["unknown policy 'hybird'", "did you mean 'hybrid'?"]),
        ("{name: hybrid, latency: 1}", ["policy hybrid has no parameter 'latency'"]),
        ("{name: hybrid, latency_weight: 2}", ["hybrid: latency_weight is 2, but it must be between 0 and 1"]),
        ("{name: hybrid", ["SIMRUN_POLICY: cannot be read as YAML"]),
    ],
)
def test_what_vllm_cannot_run_is_refused_by_name(policy: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMRUN_POLICY", policy)
    with pytest.raises(PolicyError) as caught:
        build_scheduler(SETTINGS, PLUGIN)
    assert all(part in str(caught.value) for part in said), caught.value


def test_the_scheduling_policy_must_be_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMRUN_POLICY", "srtf")
    with pytest.raises(PolicyError, match=r"vLLM schedules by fcfs, .* --scheduling-policy priority"):
        build_scheduler(replace(SETTINGS, policy="fcfs"), PLUGIN)


def test_another_version_is_refused_unless_it_is_allowed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMRUN_POLICY", "srtf")
    monkeypatch.setattr(vllm_plugin, "vllm_version", "0.33.1+cpu")
    with pytest.raises(
        PolicyError, match=r"vLLM 0\.33\.1\+cpu, .* tested with vLLM 0\.32\.0.* SIMRUN_ALLOW_VLLM=0\.33\.1"
    ):
        build_scheduler(SETTINGS, PLUGIN)
    monkeypatch.setenv("SIMRUN_ALLOW_VLLM", "0.33.0")
    with pytest.raises(PolicyError, match=r"allows 0\.33\.0, not this one"):
        build_scheduler(SETTINGS, PLUGIN)
    monkeypatch.setenv("SIMRUN_ALLOW_VLLM", "0.33.1")
    assert build_scheduler(SETTINGS, PLUGIN).ranks_by.name == "srtf"


def test_adaptive_needs_chunked_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMRUN_POLICY", "adaptive")
    settings = replace(SETTINGS, enable_chunked_prefill=False, max_model_len=64)
    with pytest.raises(PolicyError, match="adaptive: enable_chunked_prefill is False"):
        build_scheduler(settings, PLUGIN)


@pytest.mark.parametrize(("async_scheduling", "name"), [(False, "PolicyScheduler"), (True, "AsyncPolicyScheduler")])
def test_one_name_serves_both_kinds_of_scheduling(
    async_scheduling: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    monkeypatch.setenv("SIMRUN_POLICY", "srtf")
    scheduler = build_scheduler(replace(SETTINGS, async_scheduling=async_scheduling), PLUGIN)
    assert type(scheduler).__name__ == name
    assert isinstance(scheduler, AsyncScheduler) is async_scheduling


def test_the_asynchronous_one_is_refused_where_vllm_does_not_schedule_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMRUN_POLICY", "srtf")
    with pytest.raises(PolicyError, match="asynchronous scheduling, which is off: name PolicyScheduler"):
        build_scheduler(SETTINGS, "policies.vllm_plugin.AsyncPolicyScheduler")


def scheduler_with(policy: str, monkeypatch: pytest.MonkeyPatch) -> RealScheduler:
    monkeypatch.setenv("SIMRUN_POLICY", policy)
    return RealScheduler(Case("hand", 0, SETTINGS, ()), PLUGIN)


def add_with(real: RealScheduler, request_id: str, extra_args: dict[str, Any] | None) -> Any:
    """A request whose extra arguments are these; what policies see of it."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=20, ignore_eos=True, detokenize=False, extra_args=extra_args)
    request = Request(
        request_id=request_id,
        prompt_token_ids=[5] * 8,
        sampling_params=params,
        pooling_params=None,
        arrival_time=3.0,
        priority=4,
    )
    real.scheduler.add_request(request)
    return real.scheduler.requests[request_id].view


def test_hints_come_from_the_extra_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scheduler_with("sjf", monkeypatch)
    hints = {"expected_output_tokens": 7, "tenant": "acme", "deadline_s": 2.5, "class_name": "chat", "not_ours": [1]}
    view = add_with(real, "a", hints)
    assert (view.expected_output_tokens, view.tenant, view.tier, view.class_name) == (7, "acme", "acme", "chat")
    assert (view.arrival_ns, view.deadline_ns, view.priority) == (3_000_000_000, 5_500_000_000, 4)
    assert real.scheduler.ranks_by.rank(view, 0) == 8 + 7
    bare = add_with(real, "b", None)
    assert real.scheduler.ranks_by.rank(bare, 0) == 8 + 20, "without a hint: max_tokens"


def test_an_invalid_hint_is_told_once_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scheduler_with("sjf", monkeypatch)
    told: list[str] = []
    monkeypatch.setattr(vllm_plugin.logger, "warning", lambda text, *args: told.append(text % args))
    for number, expected in enumerate(["many", -1, 1.5, True, None, [3]]):
        view = add_with(real, f"r{number}", {"expected_output_tokens": expected, "tier": "gold"})
        assert view.expected_output_tokens is None
        assert view.tier == "gold"
    assert told == [
        "Request r0: hint expected_output_tokens is 'many', but it must be a whole number, at least 1; it is ignored"
        " (told once for expected_output_tokens)"
    ]
    assert len(real.schedule(3)[0]) == 6, "all run"


def test_nobody_is_evicted_for_a_request_whose_grammar_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.request import RequestStatus

    monkeypatch.setenv("SIMRUN_POLICY", "srtf")
    real = RealScheduler(Case("hand", 0, replace(SETTINGS, max_num_seqs=1), ()), PLUGIN)
    real.add_request(CaseRequest("long", 0, 8, 100, 100))
    real.settle(was_empty=not real.schedule(0)[0])
    real.add_request(CaseRequest("short", 1, 8, 2, 2))
    short = real.scheduler.requests["short"]
    short.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    short.structured_output_request = SimpleNamespace(grammar=None)
    scheduled, preempted = real.schedule(1)
    assert (scheduled, preempted) == ((("long", 1),), ())
    real.settle(was_empty=False)
    short.structured_output_request.grammar = object()
    scheduled, preempted = real.schedule(2)
    assert (scheduled, preempted) == ((("short", 8),), ("long",))


def test_a_rank_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scheduler_with(f"{__name__}:NoNumber", monkeypatch)
    with pytest.raises(PolicyError, match="policy no_number ranked request a NaN"):
        add_with(real, "a", None)


def test_a_policy_changes_only_while_nobody_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scheduler_with("sjf", monkeypatch)
    real.scheduler.use_policy(Fcfs())
    add_with(real, "a", None)
    with pytest.raises(PolicyError, match="1 requests are here"):
        real.scheduler.use_policy(Fcfs())


@pytest.mark.parametrize("policy", ["srtf", "fair", "tiered", "adaptive"])
def test_aborted_requests_leave_nothing_behind(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that go away while their requests wait, run, or have output in flight."""
    from vllm.v1.request import RequestStatus

    monkeypatch.setenv("SIMRUN_POLICY", policy)
    settings = replace(SETTINGS, async_scheduling=True, max_num_seqs=2, num_gpu_blocks=12)
    real = RealScheduler(Case("hand", 0, settings, ()), PLUGIN)
    ended: list[str] = []
    real.scheduler.ranks_by.on_finished = lambda view: ended.append(view.request_id)
    for number in range(4):
        real.add_request(CaseRequest(f"r{number}", 0, 30, 20, 20))
    for step in range(3):
        real.settle(was_empty=not real.schedule(step)[0])
    real.scheduler.finish_requests(["r0", "r3"], RequestStatus.FINISHED_ABORTED)
    step = 3
    while not real.is_idle and step < 200:
        real.settle(was_empty=not real.schedule(step)[0])
        step += 1
    assert sorted(ended) == ["r0", "r1", "r2", "r3"]
    assert real.free_blocks == settings.usable_blocks
    assert not real.scheduler.waiting
    assert not real.scheduler._group_of
