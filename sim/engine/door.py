"""What the outside may do to a replica, and what it sees of it: the same for every kind of replica.

An operation acts at the clock's current instant, in the turn (``sim.engine.clock.Turn``) in which it is called. The
replica is first as of that turn: every step that ends at this instant has ended, no step that starts at this instant
has been formed. What the replica had planned beyond the instant is cut, the operation is applied, and the replica
plans anew: so a step that is formed at this instant, in ``Turn.STEP_START``, sees the operation.

Called in: ``crash`` and ``set_cost`` in ``Turn.FAULT``, ``cancel`` in ``Turn.TIMEOUT``, ``submit`` in ``Turn.ARRIVAL``,
``drain`` and ``undrain`` in ``Turn.CONTROL``. So a request whose last token is due at the instant of a crash or of its
cancellation is complete, and one that arrives at the instant of a crash finds the replica back and empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from policies.base import ReplicaView
from sim.engine.request import Request
from sim.latency.base import StepCost
from sim.results.record import Status

OnEnd = Callable[[Request, Status], None]
"""Called at the instant at which an attempt ends, after its row is written and its seat and blocks are free."""


class Door(ReplicaView, Protocol):
    """One replica, from outside: what a router may see of it, and what may be done to it.

    Requests are of the kind that the replica asks for: ``Request``, or a subclass with what its engine keeps of one.
    """

    cost: StepCost

    @property
    def is_draining(self) -> bool:
        """Whether it takes no new requests."""
        ...

    # --- ends --------------------------------------------------------------------------------

    def watch(self, on_end: OnEnd | None) -> None:
        """Call ``on_end`` for every attempt that ends from now on, by completion or by ``cancel``; None: do not.

        Ends of one instant come in the order of their turns: completions by replica, then cancellations by row.
        A replica that is not watched may take in its ends later, all at once.
        """
        ...

    # --- operations --------------------------------------------------------------------------

    def why_never(self, request: Any) -> str | None:
        """Why ``request`` can never run to its end here, or None. Depends on the engine's settings alone."""
        ...

    def submit(self, request: Any) -> None:
        """A request arrives. ``why_never`` must have had no objection, and the replica must not be draining.

        From now on the replica itself cancels it, with ``Status.CANCELLED``, at its ``cancel_ns`` in
        ``Turn.TIMEOUT``, unless it has ended by then; several at one instant in the order of their rows.
        """
        ...

    def cancel(self, request: Any, status: Status) -> None:
        """``request`` leaves: its seat and its blocks are free at once (vLLM's ``finish_requests``), but for those of
        a static batch, which are free when all of it has ended.

        Its row says ``status``, no finish, and the tokens generated so far; tokens in flight are lost. A batch in
        flight ends when it would have. Nothing happens where the request has ended or is not here any more.
        """
        ...

    def crash(self) -> Sequence[Request]:
        """Everything here is lost. Returns the requests that ran or waited, in the order of their rows.

        No row is written for them, and ``watch`` hears nothing: the caller decides what becomes of them. Batches in
        flight never end, and their steps are not written, nor is an empty step behind them; a step whose end is now or
        earlier is. KV cache,
        scheduler and policy start anew, with the host and the accelerator idle. ``is_draining``, the step cost and
        the watcher stay. Ranks that step together crash together, and the requests of all of them are returned.
        """
        ...

    def drain(self) -> None:
        """No new requests from now on; what is here goes on to its end."""
        ...

    def undrain(self) -> None:
        """New requests again."""
        ...

    def set_cost(self, cost: StepCost) -> None:
        """Steps formed from now on cost this; batches in flight keep what they cost. The same number of stages.

        Ranks that step together get it together, from the next step that is launched.
        """
        ...

    # --- the end of the run ------------------------------------------------------------------

    def finish(self) -> None:
        """Nothing comes from outside any more: run to the end of what is here."""
        ...

    def check_empty(self) -> None:
        """Raise SimulationError where a request or a KV block is left."""
        ...
