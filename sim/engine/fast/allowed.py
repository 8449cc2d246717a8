"""What the fast engine may take: a positive list. Everything that is not on it is the reference's."""

from __future__ import annotations

from dataclasses import fields

from policies.base import Policy
from sim.engine.reference.batch import SchedulerSettings

ANY = object()


class NotFollowed(Exception):
    """The fast engine has met, while it runs, what it cannot follow: the reference takes the run."""


SETTINGS: dict[str, object] = {
    "num_gpu_blocks": ANY,
    "block_size": ANY,
    "max_model_len": ANY,
    "max_num_seqs": ANY,
    "max_num_batched_tokens": ANY,
    "enable_chunked_prefill": ANY,
    "max_prefill_tokens_per_step": ANY,
    "scheduler_reserve_full_isl": ANY,
    "watermark": ANY,
    "enable_prefix_caching": ANY,
    "async_scheduling": ANY,
    "block_bytes": ANY,
    "prompt_tokens_per_output_token": ANY,
    "sliding_window": ANY,
}
"""Settings that it follows, whatever they are; any other setting must have its default."""

HOOKS = frozenset(
    {"bind", "rank", "next_change_ns", "rank_group", "service_group", "preempt", "on_arrival"}
    | {"on_scheduled", "on_finished", "preempts", "live_refusal", "is_live", "share"}
)
"""Methods of ``Policy`` that a class may override."""


def why_not(settings: SchedulerSettings, policy: Policy) -> str | None:
    """Why the reference takes each step of such an engine, or None."""
    for field in fields(settings):
        if field.name not in SETTINGS and getattr(settings, field.name) != field.default:
            return f"the fast engine does not know the setting {field.name}"
    if settings.max_num_seqs >= settings.max_num_batched_tokens:
        return "a step may not hold a token of every running request"
    base = vars(Policy)
    for name in base:
        if name.startswith("__") or name in HOOKS or not (callable(base[name]) or isinstance(base[name], property)):
            continue
        if getattr(type(policy), name) is not base[name]:
            if name == "share_budgets" and policy.share_budgets(settings.max_num_batched_tokens) is None:
                continue
            return f"policy {policy.name} overrides {name}"
    if policy.pass_over:
        return f"policy {policy.name} passes over requests that do not fit"
    return None
