"""The policy contract: what a scheduling policy sees and what it may answer.

Standard library only, because the same objects run in the simulator and inside a live vLLM
scheduler. A policy is a *rank over requests*: smaller runs first. Everything else is optional.

The engine runs a policy exactly as vLLM's priority mode with ``priority = rank``
(``vllm/v1/core/sched/request_queue.py``): ranks are refreshed when ``schedule()`` is called,
proactive preemptions come first, admission takes the smallest ``(rank, arrival_time,
request_id)`` and a KV shortage evicts the largest ``(rank, arrival_time)`` of ``running``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, Flag
from typing import ClassVar, Protocol, TypeVar


class PolicyError(ValueError):
    """A policy, predictor or router was given a parameter it cannot use."""


class RequestView(Protocol):
    """What a policy may know of a request. Names are vLLM's (``vllm/v1/request.py``) where vLLM has one.

    The true output length is never on the view: only a predictor gives one.
    """

    request_id: str
    arrival_time: float
    """Seconds, as in vLLM."""
    arrival_ns: int
    """The same instant in integer nanoseconds: what policies compute with."""
    priority: int
    """The client's own priority (smaller is more urgent)."""
    num_prompt_tokens: int
    max_tokens: int
    tenant: str
    tier: str
    """Service tier by name; the tenant's name where the workload gives no tier."""
    class_name: str
    deadline_ns: int | None
    """Instant by which the request should have ended, or None."""
    expected_output_tokens: int | None
    """The client's own hint, or None."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose KV is in the cache, or will be once the steps in flight have ended."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, as far as they are known."""
        ...


class RankChanges(Flag):
    """When a policy's rank of a request can move, besides when the request is preempted.

    Flags: ``PROGRESS | TIME`` moves with either. Of what a policy has ``declared``, ask with
    ``RankChanges.TIME in changes`` (``ALWAYS`` contains all); ask for ``NEVER`` with ``==``.
    """

    NEVER = 0
    PROGRESS = 1
    """When that request itself computes tokens."""
    TIME = 2
    """With the clock; ``next_change_ns`` says when."""
    OTHERS = 4
    """With the progress of other requests."""
    ALWAYS = PROGRESS | TIME | OTHERS
    """Every step."""


class DecodeRanks(Enum):
    """How the ranks of decoding requests move while every one of them gets one token a step.

    It lets a live engine rank its running requests anew only where they can have moved, and changes no decision.
    """

    MOVE = 0
    """In any way: each is asked for."""
    STAY = 1
    """Not at all."""


class Feedback(Enum):
    """What ``on_scheduled`` does with a request that it was told of before.

    It lets a live engine of a thousand running requests tell a policy of them all in a few calls, and changes no
    decision.
    """

    EACH = 0
    """Anything: it is told of each request."""
    FIRST = 1
    """Nothing: only the first call for a request matters."""
    GROUPS = 2
    """Something that depends on ``service_group`` and the number of tokens only: after the first call for each,
    requests of one group may be told together, as one of them with the sum of their tokens."""


Declared = TypeVar("Declared", RankChanges, DecodeRanks, Feedback)


class Predictor(Protocol):
    """Expected output length of a request, in tokens, at least 1."""

    name: ClassVar[str]

    def predict(self, request: RequestView) -> int:
        """Expected total output tokens of ``request``."""
        ...

    def on_finished(self, request: RequestView) -> None:
        """Called once when a request ends; ``num_output_tokens`` is then its true length."""
        ...


PROMPT_TOKENS_PER_OUTPUT_TOKEN = 3
"""What ``EngineLimits`` says where no cost of a step is known: that of llama-3.1-8b on an H100 with 256 seats."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The engine's own limits and the one ratio of its costs, given to a policy once by ``bind``."""

    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    num_gpu_blocks: int
    enable_chunked_prefill: bool
    prompt_tokens_per_output_token: int = PROMPT_TOKENS_PER_OUTPUT_TOKEN
    """How many prompt tokens take as long as one output token while all seats are taken, at least 1."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """A policy's cap on one step. Both stay within the engine's own limits.

    With ``enable_chunked_prefill`` False a prompt that the cap could hold is not split; one longer
    than the cap is chunked all the same, or it would never run.
    """

    max_num_batched_tokens: int
    enable_chunked_prefill: bool


@dataclass(slots=True)
class EngineState:
    """The engine as of this ``schedule()``. One object may be reused from step to step: do not keep it."""

    now_ns: int
    free_blocks: int
    """KV blocks that can be allocated now; unreferenced cached ones count as free, as in vLLM."""
    num_running: int
    num_waiting: int


class Policy:
    """Base of every policy. Subclasses are dataclasses; their fields are the scenario's parameters.

    One object serves one engine. A policy with a predictor tells it of ended requests itself
    (``policies/expected.py`` does); the engine does not.

    Class attributes describe what the policy needs, so that the simulator can skip work and the
    vLLM plugin can refuse what vLLM cannot express.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``simrun policies``."""
    stock_mode: ClassVar[str | None] = None
    """``fcfs`` or ``priority`` where vLLM has the policy itself; ranks are then not asked for."""
    uses_predictor: ClassVar[bool] = False
    rank_changes: ClassVar[RankChanges] = RankChanges.ALWAYS
    decode_ranks: ClassVar[DecodeRanks] = DecodeRanks.MOVE
    feedback: ClassVar[Feedback] = Feedback.EACH
    """These three let an engine ask less often, and change no decision. An engine asks for them with ``declared``: each
    holds for the class that says it only, so that a derived class that ranks otherwise is asked every time until it
    says so too."""
    pass_over: ClassVar[bool] = False
    """Simulator only: what does not fit is passed over and later ones are tried (P12)."""
    shares_accumulate: bool = False
    """False: a figure of ``share_budgets`` bounds its own group. True: it bounds the group together
    with the groups before it in the dictionary (premium to 60 %, premium and standard to 90 % ...)."""
    not_live_because: ClassVar[str | None] = None
    """Why vLLM cannot run this policy; None where it can."""

    predictor: Predictor

    def bind(self, limits: EngineLimits) -> None:
        """Told the engine's limits once, before the first step.

        Raises:
            PolicyError: the policy cannot work within them.
        """

    def rank(self, request: RequestView, now_ns: int) -> float:
        """Rank of ``request`` at ``now_ns``, the instant of ``schedule()``; smaller runs first."""
        raise NotImplementedError

    def next_change_ns(self, request: RequestView, now_ns: int) -> int | None:
        """First instant after ``now_ns`` at which the clock alone can change ``request``'s rank or, by way
        of ``request``, the answer of ``preempt``; None = never."""
        return None

    def rank_group(self, request: RequestView) -> Hashable | None:
        """Where ranks move with ``OTHERS``: requests of one group have equal ranks at every instant, until the clock
        reaches ``next_change_ns`` of one of them; None = it is in no group."""
        return None

    def service_group(self, request: RequestView) -> Hashable:
        """Where ``feedback`` is ``GROUPS``: the group that the tokens of ``request`` count for; always the same."""
        raise NotImplementedError

    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], state: EngineState
    ) -> Sequence[RequestView]:
        """Running requests to evict before this step is scheduled, in order.

        ``waiting`` is in the order ``schedule()`` would admit it, and may be read lazily from its head.
        ``running`` is in admission order. Called only if ``preempts`` says so and both are non-empty.
        """
        return ()

    def step_limits(self, now_ns: int) -> StepLimits | None:
        """Cap on this step, or None for the engine's own limits."""
        return None

    def victim(self, running: Sequence[RequestView], needy: RequestView) -> RequestView | None:
        """Simulator only: the request that yields KV blocks to ``needy``; None = vLLM's rule."""
        return None

    def share(self, request: RequestView) -> str | None:
        """Simulator only: the share group whose budget a request's tokens count against."""
        return None

    def share_budgets(self, max_num_batched_tokens: int) -> dict[str, int] | None:
        """Simulator only: tokens by share group for the coming step, asked anew each step; None = no shares.

        ``shares_accumulate`` says what a figure bounds. A request whose group (or whose group's
        predecessors) left it nothing gets no token in this step and the next request is tried,
        running or waiting; what is left smaller than the request needs is a chunk. With shares the
        running pass goes through ``running`` by (rank, arrival_time, request_id). A group that is
        not named is bounded by the step's budget only.
        """
        return None

    def on_arrival(self, request: RequestView, now_ns: int) -> None:
        """A request joined the waiting queue for the first time (not after a preemption)."""

    def on_scheduled(self, request: RequestView, num_tokens: int) -> None:
        """``num_tokens`` of ``request`` were scheduled. Additive: two calls equal one with the sum."""

    def on_step(self, num_tokens: int, token_budget: int, num_steps: int) -> None:
        """``num_steps`` steps of ``num_tokens`` each were scheduled under ``token_budget``, the cap then in
        effect (``step_limits`` included). Additive."""

    def on_finished(self, request: RequestView) -> None:
        """A request ended, however it ended. Called once."""

    @property
    def preempts(self) -> bool:
        """Whether ``preempt`` can ever answer anything."""
        return type(self).preempt is not Policy.preempt

    @property
    def is_live(self) -> bool:
        """Whether a live vLLM can run this policy as configured."""
        return self.live_refusal() is None

    def live_refusal(self) -> str | None:
        """Why a live vLLM cannot run this policy as configured, or None. Parameters may matter."""
        return self.not_live_because


def declared(policy: Policy, name: str, default: Declared) -> Declared:
    """What the class of ``policy`` itself says by the attribute ``name``; ``default`` where it says nothing.

    A class inherits no such statement: one that derives from ``Srtf`` and ranks otherwise does not count down.
    """
    found = vars(type(policy)).get(name, default)
    return found if isinstance(found, type(default)) else default


class ReplicaView(Protocol):
    """What a router may know of a replica, as of now."""

    index: int
    model: str
    num_gpu_blocks: int

    @property
    def num_running(self) -> int:
        """Requests that run."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests that run or wait."""
        ...

    @property
    def free_blocks(self) -> int:
        """KV blocks that can be allocated now."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens not yet computed plus the output tokens its requests may still ask for."""
        ...


class RoutedRequest(Protocol):
    """What a router may know of a request that arrives."""

    request_id: str
    arrival_ns: int
    num_prompt_tokens: int
    max_tokens: int
    tenant: str
    session: str | None
    prefix_key: str | None
    """Identity of the first shared content of the prompt, or None."""


class Router(Protocol):
    """Chooses a replica for each arriving request."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """Position in ``replicas`` of the chosen one.

        ``replicas`` may have a method ``counts()``: ``num_requests`` of each in one list, as of now, which is not to be
        changed. It saves a router of a hundred replicas as many looks.
        """
        ...
