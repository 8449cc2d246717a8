"""What the fast engine may take: a positive list. Everything that is not on it is the reference's.

The list is of settings, of a policy's hooks, and of the reference itself: ``FINGERPRINT`` says for which text of it the
two were found equal. After a change of the reference, look at what the fast engine does there, run the tests of
equality (docs/fast-forward.md), and put in what ``python -m sim.engine.fast.allowed`` prints.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from policies.base import Feedback, Policy, declared
from policies.checks import label
from sim.engine import request
from sim.engine.reference import (
    adapters,
    batch,
    images,
    kv_cache,
    recompute,
    replica,
    scheduler,
    seats,
    shares,
    steering,
    waiting,
)
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.variants import choice, drafts, group_kinds, groups, lockstep, states, window

FINGERPRINT = "9481a8e76067b8db0de02a422b62d23e4c0dd46f196baaee10ebda7a5c804e43"
"""Of the reference's files, as ``fingerprint`` works it out."""

REFERENCE = (
    *(adapters, batch, images, kv_cache, recompute, replica, request, scheduler, seats, shares, steering, waiting),
    *(choice, drafts, group_kinds, groups, lockstep, states, window),
)
"""The modules that decide, and say when, where each step is taken; of the variants those with a fast engine."""


class NotFollowed(Exception):
    """The fast engine has met, while it runs, what it cannot follow: the reference takes the run."""


SETTINGS = frozenset(
    {"num_gpu_blocks", "block_size", "max_model_len", "max_num_seqs", "max_num_batched_tokens"}
    | {"enable_chunked_prefill", "max_prefill_tokens_per_step", "scheduler_reserve_full_isl", "watermark"}
    | {"enable_prefix_caching", "async_scheduling", "block_bytes", "prompt_tokens_per_output_token", "sliding_window"}
    | {"kv_groups"}
)
"""Settings that it follows, whatever they are; any other setting must have its default. Of KV groups it does not follow
states that are cached."""

REFUSED = frozenset(
    {"long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "contiguous_kv", "static_batching"}
    | {"num_swap_blocks", "num_speculative_tokens", "num_lookahead_tokens", "pipeline_parallel_size", "draft_slots"}
    | {"drops_last_block"}
    | {"encoder_budget_embeds", "encoder_cache_embeds", "disable_chunked_mm_input"}
    | {"prefix_cache_retention_interval", "max_loras", "max_cpu_loras", "lora_bytes", "num_host_blocks"}
)
"""Settings that it is known not to follow."""

ENGINE_KEYS = frozenset(
    {
        "model",
        "gpu",
        "vllm_version",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "enable_expert_parallel",
    }
    | {"all2all_backend", "dtype", "kv_cache_dtype", "block_size", "gpu_memory_utilization", "num_gpu_blocks_override"}
    | {"kv_cache_memory_bytes", "moe_backend"}
    | {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill"}
    | {"max_prefill_tokens_per_step", "long_prefill_token_threshold", "long_prefill_token_threshold_adaptive"}
    | {"scheduler_reserve_full_isl", "watermark", "enable_prefix_caching", "cache_isolation", "async_scheduling"}
    | {"preemption", "swap_space_gib", "kv", "batching", "static_batch_wait_s", "stepping", "enforce_eager"}
    | {"compilation_config"}
    | {"enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras"}
    | {"enable_images", "disable_chunked_mm_input"}
    | {"kv_offloading_size", "kv_offloading_backend"}
    | {"speculative", "policy", "predictor"}
)
"""Keys of a scenario's ``engine`` that decide by way of those settings, or of what the caller looks at."""

HOOKS = frozenset(
    {"bind", "rank", "next_change_ns", "rank_group", "service_group", "preempt", "on_arrival"}
    | {"on_scheduled", "on_finished", "preempts", "live_refusal", "is_live", "share"}
)
"""Methods of ``Policy`` that a class may override."""

ATTRIBUTES = frozenset(
    {"name", "summary", "stock_mode", "uses_predictor", "rank_changes", "decode_ranks", "feedback"}
    | {"shares_accumulate", "not_live_because"}
)
"""Attributes of ``Policy`` that a class may set."""


def why_not(settings: SchedulerSettings, policy: Policy) -> str | None:
    """Why the reference takes each step of such an engine, or None."""
    for field in fields(settings):
        if field.name not in SETTINGS and getattr(settings, field.name) != field.default:
            return f"the fast engine does not know the setting {field.name}"
    kinds = {group.kind for group in settings.kv_groups}
    if "state" in kinds and settings.enable_prefix_caching:
        return "states are cached, and several prompts are done in part at once"
    if "chunk" in kinds and not kinds & {"full", "latent"}:
        return "prefixes count as cached that are not"
    if any(group.kind == "chunk" and group.sliding_window == 1 for group in settings.kv_groups):
        return "a token looks back on itself alone, and its block is given back with it"
    most_tokens = settings.max_num_batched_tokens
    if settings.max_num_seqs >= most_tokens:
        return "a step may not hold a token of every running request"
    for name in _changed(policy):
        if name == "share_budgets" and _is_built_in(policy) and policy.share_budgets(most_tokens) is None:
            continue
        return f"policy {label(policy)} has a {name} of its own"
    hears = type(policy).on_scheduled is not Policy.on_scheduled
    if hears and declared(policy, "feedback", Feedback.EACH) is Feedback.EACH:
        return f"policy {label(policy)} hears of each request in each step"
    return None


def surprise(
    settings: SchedulerSettings, policy: Policy, engine_keys: Iterable[str], scheduler_type: object
) -> str | None:
    """Why the reference takes each step although nothing in the scenario asks for it, or None.

    ``engine_keys``: keys of the engine that are not at their defaults; ``scheduler_type``: what the reference builds.
    """
    if fingerprint() != FINGERPRINT:
        return "the reference scheduler changed since the fast engine was checked against it"
    changed = next(_replaced(), None)
    if scheduler_type is not scheduler.Scheduler:
        changed = "Scheduler"
    if changed is not None:
        return f"{changed} of the reference scheduler was replaced"
    for field in fields(settings):
        if field.name not in SETTINGS | REFUSED and getattr(settings, field.name) != field.default:
            return f"the fast engine does not know the setting {field.name}"
    for key in engine_keys:
        if key not in ENGINE_KEYS:
            return f"the fast engine does not know engine.{key}"
    if not _is_built_in(policy) or _own(policy).keys() & _methods():
        for name in _changed(policy):
            return f"policy {label(policy)} has a {name} of its own"
    return None


def _is_built_in(policy: Policy) -> bool:
    return type(policy).__module__.partition(".")[0] == "policies"


def _methods() -> set[str]:
    base = vars(Policy)
    return {name for name in base if callable(base[name]) or isinstance(base[name], property)}


def _own(policy: Policy) -> dict[str, Any]:
    return getattr(policy, "__dict__", {})


def _changed(policy: Policy) -> Iterator[str]:
    """Which methods of ``Policy`` are not as they were, and not on the list."""
    base, kind, own = vars(Policy), type(policy), _own(policy)
    methods = _methods()
    for name in base:
        if name.startswith("__"):
            continue
        if name in methods:
            if name in own or (name not in HOOKS and getattr(kind, name) is not base[name]):
                yield name
        elif name not in ATTRIBUTES and getattr(policy, name) != base[name]:
            yield name


# --- the reference ---------------------------------------------------------------------------------


@cache
def fingerprint() -> str:
    """SHA-256 of the reference's files, on any machine and from any kind of installation."""
    digest = hashlib.sha256()
    for module in REFERENCE:
        digest.update(module.__name__.encode() + b"\n" + _text(module).replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _text(module: ModuleType) -> bytes:
    spec = module.__spec__
    if spec is None or spec.origin is None:
        return b""
    data: bytes = spec.loader.get_data(spec.origin)  # type: ignore[union-attr]
    return data


def _replaced() -> Iterator[str]:
    """Functions and classes of the reference that are not those of its files."""
    for module in REFERENCE:
        for name, value in vars(module).items():
            if isinstance(value, FunctionType | type) and value.__module__ != module.__name__:
                top = value.__module__.partition(".")[0]
                if top not in ("sim", "policies", "simpy", "numpy") and top not in sys.stdlib_module_names:
                    yield f"{module.__name__}.{name}"
            elif isinstance(value, FunctionType) and not _is_of(value, module):
                yield f"{module.__name__}.{name}"
            elif isinstance(value, type):
                yield from _replaced_in(value, module)


def _replaced_in(owner: type, module: ModuleType) -> Iterator[str]:
    # Methods with two underscores of these are made, not written.
    is_made = is_dataclass(owner) or issubclass(owner, tuple | Enum) or getattr(owner, "_is_protocol", False)
    for name, value in vars(owner).items():
        if is_made and name.startswith("_"):
            continue
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, FunctionType) and not _is_of(value, module):
            yield f"{owner.__name__}.{name}"


def _is_of(function: FunctionType, module: ModuleType) -> bool:
    spec = module.__spec__
    return spec is not None and function.__code__.co_filename == spec.origin


if __name__ == "__main__":
    print(fingerprint())
