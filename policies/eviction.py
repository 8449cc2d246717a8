"""Making room: which running requests to evict so that a waiting one gets in, or none if that cannot work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policies.base import EngineLimits, EngineState, RequestView


def blocks_for(num_tokens: int, block_size: int) -> int:
    """KV blocks that hold ``num_tokens`` tokens."""
    return -(-num_tokens // block_size)


def blocks_short(head: RequestView, limits: EngineLimits, state: EngineState) -> int:
    """Blocks missing for all tokens ``head`` has now; 0 or less = they fit.

    Cached prefixes are not counted on: a policy does not see them.
    """
    return blocks_for(head.num_prompt_tokens + head.num_output_tokens, limits.block_size) - state.free_blocks


def has_room(head: RequestView, limits: EngineLimits, state: EngineState) -> bool:
    """Whether ``head`` can be admitted with no request evicted."""
    return state.num_running < limits.max_num_seqs and blocks_short(head, limits, state) <= 0


def evict_until_room(
    head: RequestView, candidates: Iterable[RequestView], limits: EngineLimits, state: EngineState
) -> Sequence[RequestView]:
    """The first of ``candidates``, in their order, whose seats and blocks let ``head`` in; empty if all do not.

    A shared block does not come free with its first owner; the next step then evicts one more.
    """
    seats_short = state.num_running - limits.max_num_seqs + 1
    short = blocks_short(head, limits, state)
    victims: list[RequestView] = []
    for candidate in candidates:
        if seats_short <= 0 and short <= 0:
            break
        victims.append(candidate)
        seats_short -= 1
        short -= blocks_for(candidate.num_computed_tokens, limits.block_size)
    return victims if seats_short <= 0 and short <= 0 else ()


def work_until_room(
    head: RequestView, ending: Iterable[tuple[int, RequestView]], limits: EngineLimits, state: EngineState
) -> int | None:
    """Work left until the running requests, (work left, request) by their ends, make room for ``head`` by ending.

    None if they never do. New blocks of those that go on are not foreseen.
    """
    seats_short = state.num_running - limits.max_num_seqs + 1
    short = blocks_short(head, limits, state)
    for work, request in ending:
        seats_short -= 1
        short -= blocks_for(request.num_computed_tokens, limits.block_size)
        if seats_short <= 0 and short <= 0:
            return work
    return None
