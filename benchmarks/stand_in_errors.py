"""How wrong the prediction is where a profile has no measurement: what stands in, against times that were measured.

    python -m benchmarks.stand_in_errors

Each way of standing in is tried where its target was measured after all, and that measurement is kept from it: times
of one number format from the curves of another, groups of so many GPUs from the others, one GPU from the profile of
the same chip with other memory, whole shapes of experts, and the models of small kernels. The medians are charged
by ``sim/latency/profile/evidence.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sim.latency.gpus import load_gpu
from sim.latency.profile.file import Device, Key, Operator, Profile, load_profile
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.library import BUILTIN, SUFFIX, builtin_names
from sim.latency.profile.operator_tables import ELEMENTWISE_EFFICIENCY, ELEMENTWISE_START_NS, NEAR_DTYPES
from sim.latency.profile.predict import Predictor
from sim.latency.profile.profiled_operators import SAMPLER_BYTES_PER_LOGIT, SAMPLER_NS
from sim.latency.profile.speed_of_light import LAUNCH_NS

Floats = npt.NDArray[np.float64]
Errors = list[float]
SEED = 0
MOST_CURVES = 600
"""Of an operator and profile, drawn at random."""
SAME_CHIP = (("h100-sxm", "h200-sxm"), ("h200-sxm", "h100-sxm"))
"""Profiles of one chip with other memory: as the A100 with 40 GB is scaled from the one with 80 GB."""
ELEMENTWISE_BYTES = {"rms_norm": 8.0, "rotary": 4.0, "reshape_and_cache": 4.0, "silu_and_mul": 6.0, "embedding": 4.0}
"""Moved per element in 16 bits, as ``elementwise_ns`` of ``sim.latency.profile.layer_kernels`` counts them."""


COPIES = {("moe", "fp8", "fp8_block"), ("moe", "fp8_block", "fp8")}
"""Formats whose curves the importers took from each other, so that comparing them says nothing."""


def off(predicted: Floats, measured: Floats) -> Errors:
    """Errors as shares of what is charged: 3 us for a kernel of 1 us are off by 67 %."""
    return np.abs(measured / predicted - 1.0).tolist()  # type: ignore[no-any-return]


def _curves(profile: Profile, operator: str) -> dict[Key, tuple[Floats, Floats]]:
    found = profile.operators.get(operator)
    if found is None:
        return {}
    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(len(found.curves))[:MOST_CURVES]
    return {
        found.curves[i].key: (np.array(found.curves[i].at, dtype=float), np.array(found.curves[i].time_ns))
        for i in chosen.tolist()
    }


def _without(profile: Profile, operator: str, left_out: set[Key]) -> Profile:
    kept = tuple(each for each in profile.operators[operator].curves if each.key not in left_out)
    changed: Operator = profile.operators[operator].model_copy(update={"curves": kept})
    return profile.model_copy(update={"operators": {**profile.operators, operator: changed}})


def formats(profile: Profile, operator: str) -> Iterator[tuple[str, Errors]]:
    """Times of a number format from the curves of the nearest other one that has the same shape."""
    predictor = Predictor(profile)
    places = [i for i, name in enumerate(OPERATORS[operator].key) if name in ("dtype", "kv_dtype")]
    for key, (at, times) in _curves(profile, operator).items():
        for place in places:
            for near in NEAR_DTYPES.get(str(key[place]), ()):
                like = (*key[:place], near, *key[place + 1 :])
                if predictor.has_exactly(operator, like) and (operator, key[place], near) not in COPIES:
                    yield f"{operator}: another format", off(predictor.times_ns(operator, key, at, like=like), times)
                    break


def groups(profile: Profile, operator: str) -> Iterator[tuple[str, Errors]]:
    """A collective among so many GPUs from the curves of other numbers of GPUs."""
    curves = _curves(profile, operator)
    for key, (at, times) in curves.items():
        others = [each for each in curves if each[0] == key[0] and each != key]
        if not others:
            continue
        between = min(each[1] for each in others) < key[1] < max(each[1] for each in others)  # type: ignore[operator]
        predictor = Predictor(_without(profile, operator, {key}))
        kind = "GPUs between measured numbers" if between else "more or fewer GPUs than measured"
        yield f"{operator}: {kind}", off(predictor.times_ns(operator, key, at), times)


def shapes(profile: Profile, operator: str) -> Iterator[tuple[str, Errors]]:
    """Whole shapes of experts (all formats) from the others."""
    curves = _curves(profile, operator)
    known = sorted({key[1:] for key in curves})
    rng = np.random.default_rng(SEED)
    for shape in [known[i] for i in rng.permutation(len(known))[:20].tolist()]:
        mine = {key for key in curves if key[1:] == shape}
        predictor = Predictor(_without(profile, operator, mine))
        for key in sorted(mine, key=str):
            if predictor.has(operator, key):
                at, times = curves[key]
                yield f"{operator}: another shape", off(predictor.times_ns(operator, key, at), times)


def small_kernels(profile: Profile) -> Iterator[tuple[str, Errors]]:
    """Element-wise kernels and the sampler from the bytes that they move."""
    bandwidth = profile.device.memory_bandwidth_bytes_per_s * ELEMENTWISE_EFFICIENCY
    for (name, width), (at, times) in _curves(profile, "elementwise").items():
        if name in ELEMENTWISE_BYTES:
            moved = at * float(width) * ELEMENTWISE_BYTES[str(name)]
            yield "elementwise: bytes moved", off(LAUNCH_NS + ELEMENTWISE_START_NS + moved / bandwidth * 1e9, times)
    for (vocabulary,), (at, times) in _curves(profile, "sampling").items():
        moved = at * float(vocabulary) * SAMPLER_BYTES_PER_LOGIT
        yield "sampling: bytes moved", off(SAMPLER_NS + moved / bandwidth * 1e9, times)


def same_chip(source: Profile, target: Profile, operator: str) -> Iterator[tuple[str, Errors]]:
    """A GPU's times from the profile of the same chip with other memory."""
    gpu = load_gpu(target.device.gpu)
    device: Device = source.device.model_copy(
        update={"memory_bytes": gpu.memory_bytes, "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth}
    )
    predictor = Predictor(source, device)
    for key, (at, times) in _curves(target, operator).items():
        if predictor.has_exactly(operator, key):
            yield f"{operator}: same chip, other memory", off(predictor.times_ns(operator, key, at), times)


def main() -> None:
    """Print one line for each way of standing in."""
    profiles = {name: load_profile(BUILTIN / f"{name}{SUFFIX}") for name in builtin_names()}
    found: dict[str, Errors] = {}

    def add(rows: Iterator[tuple[str, Sequence[float]]]) -> None:
        for name, errors in rows:
            found.setdefault(name, []).extend(errors)

    for profile in profiles.values():
        for operator in ("gemm", "moe", "prefill_attention", "decode_attention"):
            if operator in profile.operators:
                add(formats(profile, operator))
        for operator in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            if operator in profile.operators:
                add(groups(profile, operator))
        if "moe" in profile.operators:
            add(shapes(profile, "moe"))
        add(small_kernels(profile))
    for source, target in SAME_CHIP:
        for operator in ("gemm", "moe", "prefill_attention", "decode_attention"):
            add(same_chip(profiles[source], profiles[target], operator))
    print("| in place of a measurement | median error | 90th percentile | points |\n|---|---|---|---|")
    for name in sorted(found):
        errors = np.array(found[name])
        print(f"| {name} | {np.median(errors):.1%} | {np.percentile(errors, 90):.0%} | {len(errors):,} |")


if __name__ == "__main__":
    main()
