"""What a step cost from a profile stands on, term by term: measured, or what is in place of that, and how wrong it is.

Every operator that a model asked the profile for is one part of its term: an MLP's matrices are the larger part of
``matrices``. The numbers below are what ``python -m benchmarks.stand_in_errors`` finds in the built-in profiles, where
what stands in and what it stands for are both measured. ``docs/uncertainty.md`` has them with their 90th percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sim.latency.parts import UNMEASURED_ERROR, Part, one_part
from sim.latency.profile.file import Key
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.predict import Basis

if TYPE_CHECKING:
    from sim.latency.profile.profiled_operators import ProfiledOperators

OTHER_FORMAT = {"gemm": 0.20, "decode_attention": 0.20, "prefill_attention": 0.18, "moe": 0.17}
OTHER_MEMORY = {"gemm": 0.09, "decode_attention": 0.085, "prefill_attention": 0.06, "moe": 0.13}
"""Of the same chip's profile."""
FORMULA = {"elementwise": 0.57, "sampling": 0.81}
"""On the one GPU where these were measured, the RTX PRO 6000; what is charged is too much there."""
BETWEEN = {"moe": 0.04, "all_reduce": 0.05, "all_gather": 0.065, "reduce_scatter": 0.075, "all_to_all": 0.055}
BEYOND = {"moe": 0.24, "all_reduce": 0.19, "all_gather": 0.23, "reduce_scatter": 0.22, "all_to_all": 0.10}
"""Where a profile states no error of whole shapes: experts of another shape, and other numbers of GPUs."""
TERM_OF = {
    **{"moe": "experts", "moe_triton": "experts", "moe_cutlass": "experts"},
    **{"reduce_scatter": "combine", "all_to_all": "dispatch"},
    **{"block_decode": "decode_attention", "state_decode": "decode_attention"},
    **{"block_prefill": "prefill_attention", "state_prefill": "prefill_attention"},
}
"""Terms of a step that are not called like the operator that they consist of; matrices are told by their size."""
OF_LAYERS = frozenset({"matrices", "experts", "elementwise", "prefill_attention", "decode_attention"})
HELD_OUT, AT_PLACES = "held_out_curves", "random_points"


def evidence(ops: ProfiledOperators) -> dict[str, list[dict[str, Any]]]:
    """The parts of each term of a step, with the share of the term's time that each has.

    Matrices share a term by their sizes, which their times follow; everything else evenly.
    """
    weights: dict[str, dict[Part, float]] = {}
    for (operator, key), followed in ops.asked.items():
        term, weight = _place(ops, operator, key)
        parts = weights.setdefault(term, {})
        part = _with_whole_steps(ops, term, _part(ops, operator, key, followed))
        parts[part] = parts.get(part, 0.0) + weight
    if "all2all" in ops.stand_ins:
        part = Part("stand_in", UNMEASURED_ERROR, f"all2all: {ops.stand_ins['all2all']}")
        weights["dispatch"] = weights["combine"] = {part: 1.0}
    elif "all_gather" in weights:
        weights["dispatch"] = weights["all_gather"]
    if ops.pp > 1:
        sent = Part("stand_in", UNMEASURED_ERROR, f"send_receive: {ops.stand_ins.get('send_receive', 'a formula')}")
        weights["send_receive"] = {sent: 1.0}
    copies = ops.stand_ins.get("host_copy")
    if copies is not None:
        weights["swap"] = {Part("stand_in", UNMEASURED_ERROR, f"host_copy: {copies}"): 1.0}
    found = {term: _shares(parts) for term, parts in sorted(weights.items())}
    found["step_overhead"] = one_part("estimate", UNMEASURED_ERROR, "small kernels of a step outside its layers")
    found["launches"] = one_part("estimate", UNMEASURED_ERROR, "launching operators one by one")
    return found


def _shares(parts: Mapping[Part, float]) -> list[dict[str, Any]]:
    total = sum(parts.values())
    return [{"share": weight / total, **part._asdict()} for part, weight in sorted(parts.items())]


def _place(ops: ProfiledOperators, operator: str, key: Key) -> tuple[str, float]:
    """The term that an operator belongs to, and its weight there."""
    if operator == "expert_exchange":
        return str(key[1]), 1.0
    if operator != "gemm":  # the embedding is looked up once, all other element-wise kernels run in every layer
        return TERM_OF.get(operator, operator), 1.0 / ops.model.num_layers if key[0] == "embedding" else 1.0
    model = ops.model
    _, n, k = key
    if n == model.vocab_size // ops.tp and k == model.hidden_size:
        return "lm_head", 1.0
    is_router = bool(model.num_moe_layers) and n == model.num_experts
    return ("router" if is_router else "matrices"), float(n) * float(k)


def _with_whole_steps(ops: ProfiledOperators, term: str, part: Part) -> Part:
    """A profile that was tried on whole layers states what its operators are off together."""
    whole = ops.profile.errors.get("mixed_steps", {}).get("layers")
    if whole is None or term not in OF_LAYERS or part.kind != "measured":
        return part
    return part._replace(error=whole.median, what="whole steps, held out")


def _part(ops: ProfiledOperators, operator: str, key: Key, followed: Key | None) -> Part:
    if followed is None:
        stated = ops.link is not None and operator in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
        what = "the link as the scenario states it" if stated else ops.stand_ins.get(operator, "a formula")
        return Part("stand_in", FORMULA.get(operator, UNMEASURED_ERROR), f"{operator}: {what}")
    if operator == "all_reduce" and operator in ops.stand_ins:
        return Part("stand_in", UNMEASURED_ERROR, f"{operator}: {ops.stand_ins[operator]}")
    kind, error, what = _by_basis(ops, operator, followed)
    if ops.device.gpu != ops.profile.device.gpu:
        other = OTHER_MEMORY.get(operator, UNMEASURED_ERROR)
        kind, error = "other_gpu", other + (0.0 if kind == "measured" else error)
        what = f"{what}, scaled from {ops.profile.device.gpu}"
    if followed == key:
        return Part(kind, error, what)
    names = [i for i, name in enumerate(OPERATORS[operator].key) if name in ("dtype", "kv_dtype")]
    asked, used = ("/".join(str(each[i]) for i in names) for each in (key, followed))
    own = 0.0 if kind == "measured" else error  # that of like shapes is in the format's
    error = OTHER_FORMAT.get(operator, UNMEASURED_ERROR) + own
    return Part("other_format", error, f"{operator}: {asked} from curves of {used}")


def _by_basis(ops: ProfiledOperators, operator: str, key: Key) -> Part:
    stated = ops.predictor.stated_errors(operator, key)
    basis = ops.predictor.basis(operator, key)
    whole, points = stated.get(HELD_OUT), stated.get(AT_PLACES, stated.get(HELD_OUT))
    subject = f"{key[1]} GPUs" if "num_gpus" in OPERATORS[operator].key else "a shape"
    if basis is Basis.BETWEEN:
        error = BETWEEN.get(operator, UNMEASURED_ERROR) if whole is None else whole.median
        return Part("interpolated", error, f"{operator}: {subject} between measured ones")
    if basis is Basis.BEYOND:
        error = BEYOND.get(operator, UNMEASURED_ERROR) if whole is None else whole.p90
        return Part("extrapolated", error, f"{operator}: {subject} beyond measured ones")
    if points is None:
        return Part("measured", UNMEASURED_ERROR, f"{operator}: the profile states no error")
    return Part("measured", points.median, operator)
