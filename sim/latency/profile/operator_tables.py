"""What a profile answers where it is asked for one kernel or one collective: measured, or what stands in for that.

Token counts are arrays, answers nanoseconds of one launch. Where a profile lacks a number format, the curves of a near
one are used as multiples of this one's own speed of light; where it lacks an operator, a bound with a stated efficiency
stands in. ``stand_ins`` says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim.errors import InputError
from sim.latency.experts import ALONE, ExpertGroup
from sim.latency.model_spec import ModelSpec
from sim.latency.parallel import Link, kv_heads_per_gpu, ring_all_reduce_s
from sim.latency.precision import Precision
from sim.latency.profile.file import Device, Key
from sim.latency.profile.fill import distinct
from sim.latency.profile.predict import Predictor
from sim.latency.profile.speed_of_light import LAUNCH_NS
from sim.latency.profile.written import AnyProfile

Floats = npt.NDArray[np.float64]

NEAR_DTYPES = {
    "float16": ("bfloat16",),
    "float32": ("bfloat16",),
    "fp8": ("fp8_block", "int8", "bfloat16"),
    "fp8_block": ("fp8", "bfloat16"),
    "int8": ("fp8", "bfloat16"),
    "int4": ("bfloat16",),
    "int4_g32": ("int4", "bfloat16"),
    "mxfp8": ("fp8_block", "fp8", "bfloat16"),
    "fp8_weights": ("bfloat16",),
    "int8_weights": ("bfloat16",),
    "bnb_4bit": ("int4", "bfloat16"),
    "mxfp4": ("mxfp4_marlin", "int4", "bfloat16"),
    "mxfp4_marlin": ("int4", "mxfp4", "bfloat16"),
    "mxfp4_mxfp8": ("mxfp4", "fp8_block", "bfloat16"),
    "nvfp4": ("int4", "bfloat16"),
    "nvfp4_weights": ("int4", "bfloat16"),
}
"""Whose curves stand in for a number format that was not measured, nearest first."""

SAME_KERNEL = {"mxfp4_marlin": "int4"}
"""Names that say a kernel as well -> another format that it multiplies, whose curves are nearer than its own of other
shapes. INT4's are of Kimi K2's experts, of which a token takes one in 48; MXFP4's of Kimi K3's, one in 56 of 896, which
a few tokens drawn from a power law touch too few of; gpt-oss takes one in 32."""

ELEMENTWISE_EFFICIENCY = 0.7
"""Share of the memory bandwidth that norms, activations and copies reach where they were not measured."""
ELEMENTWISE_START_NS = 1000.0
"""Of their time beyond ``LAUNCH_NS``: the smallest take 2-3 us in published traces."""
MESSAGE_BYTES = 2.0 ** np.arange(8, 32)
"""Where collectives are measured."""
LINK = "link"
"""In place of a collective's implementation, where its time comes from the link's bandwidth."""


@dataclass(slots=True)
class OperatorTables:
    """One model on one of ``tp`` * ``pp`` GPUs ``device``, of the chip that ``profile`` was measured on."""

    profile: AnyProfile
    device: Device
    model: ModelSpec
    precision: Precision
    tp: int
    pp: int
    link: Link | None = None
    """What replaces the measured collectives, where the machine's GPUs are linked another way."""
    experts: ExpertGroup = ALONE
    """The GPUs that hold the experts of an MoE model."""
    expert_backend: str | None = None
    """Kernel of the routed experts, where it is another than the profile's table has (``expert_kernels``)."""
    fused_bytes: int = 0
    """Up to which the all-reduce of the hidden state and the norm after it are one kernel."""
    has_wide_gemm: bool = True
    """Whether the engine has the FP8 kernel for 8,192 rows and more."""
    nccl_from_bytes: int | None = None
    """Beyond which NCCL reduces the hidden state; None = what the table was timed through does."""
    quantises_apart: bool = False
    """Whether 8 bits are made of 16 by kernels of their own, as by an eager engine."""
    stand_ins: dict[str, str] = field(default_factory=dict)
    """Operator -> what was used in place of a measurement, as far as anything asked for it."""
    asked: dict[tuple[str, Key], Key | None] = field(default_factory=dict)
    """Operator and key of all that was asked for, and the key whose curves answered; None = a formula did."""
    predictor: Predictor = field(init=False)

    def __post_init__(self) -> None:
        self.predictor = Predictor(self.profile, self.device)

    @property
    def kv_heads(self) -> int:
        """KV heads on one GPU."""
        return kv_heads_per_gpu(self.model.num_kv_heads, self.tp)

    @property
    def heads(self) -> int:
        """Query heads on one GPU."""
        return self.model.num_attention_heads // self.tp

    def _times(self, operator: str, key: Key, dtype_places: tuple[int, ...], at: Floats) -> Floats | None:
        """Measured, or with the nearest measured number formats at ``dtype_places`` of the key; None without any."""
        candidates = _near_keys(key, dtype_places)
        if operator == "moe":
            candidates = self._nearest_experts(key, candidates)
        for candidate in candidates:
            if self.predictor.has(operator, candidate):
                self.asked[operator, key] = candidate
                if candidate != key:
                    used = "/".join(str(candidate[place]) for place in dtype_places)
                    asked = "/".join(str(key[place]) for place in dtype_places)
                    self.stand_ins[operator] = f"{asked}: curves of {used}, scaled by the speed of light"
                return self.predictor.times_ns(operator, key, at, like=candidate)
        self.asked[operator, key] = None
        return None

    def _nearest_experts(self, key: Key, candidates: list[Key]) -> list[Key]:
        """The order in which curves of experts stand in for ``key``: kernels tuned for a shape differ from others by a
        multiple, so that the shape comes first, unless the kernel is known."""
        own = str(key[0])
        if own not in SAME_KERNEL:
            return sorted(candidates, key=lambda candidate: not self.predictor.has_exactly("moe", candidate))
        first = [own, SAME_KERNEL[own]]
        if not self.predictor.has_exactly("moe", key):
            first.reverse()
        return sorted(candidates, key=lambda each: first.index(str(each[0])) if each[0] in first else len(first))

    def _lacks(self, operator: str) -> InputError:
        return InputError(
            f"latency.profile: {self.profile.name} has no {operator} in any number format, and no step is without; "
            "measure or import a whole profile, or use `kind: roofline`"
        )

    # -- element-wise -----------------------------------------------------------------------------

    def kernel_ns(self, name: str, width: int, tokens: Floats, bytes_per_element: float) -> Floats:
        """One element-wise kernel over ``width`` numbers of each token."""
        key: Key = (name, width)
        at = np.maximum(tokens, 1.0)
        has = self.predictor.has("elementwise", key)
        self.asked["elementwise", key] = key if has else None
        if has:
            times = self.predictor.times_ns("elementwise", key, at)
        else:
            least_us = (LAUNCH_NS + ELEMENTWISE_START_NS) / 1e3
            self.stand_ins["elementwise"] = f"{ELEMENTWISE_EFFICIENCY:.0%} of the bandwidth, {least_us:g} us at least"
            bandwidth = self.device.memory_bandwidth_bytes_per_s * ELEMENTWISE_EFFICIENCY
            times = LAUNCH_NS + ELEMENTWISE_START_NS + at * width * bytes_per_element / bandwidth * 1e9
        return np.where(tokens > 0, times, 0.0)

    def small_kernels_ns(self, tokens: Floats, count: int) -> Floats:
        """Kernels that do next to nothing but start."""
        return np.where(tokens > 0, count * (LAUNCH_NS + ELEMENTWISE_START_NS), 0.0)

    # -- between GPUs -----------------------------------------------------------------------------

    def _hidden_bytes(self, tokens: Floats) -> Floats:
        return np.maximum(tokens, 1.0) * (self.model.hidden_size * self.precision.activation_bytes)

    def is_fused(self, tokens: Floats) -> npt.NDArray[np.bool_]:
        """Where the all-reduce of so many tokens is one kernel with the norm after it."""
        is_known = self.link is None and self.predictor.has("all_reduce", ("trtllm", self.tp))
        fused: npt.NDArray[np.bool_] = (self._hidden_bytes(tokens) <= self.fused_bytes) & is_known
        return fused

    def all_reduce_ns(self, tokens: Floats) -> Floats:
        """One all-reduce of the hidden state over the ``tp`` GPUs."""
        if self.tp == 1:
            return np.zeros_like(tokens)
        payload = self._hidden_bytes(tokens)
        times = self.settled_ns("all_reduce", payload)
        nccl: Key = ("nccl", self.tp)
        if self.nccl_from_bytes is not None and self.link is None and self.predictor.has("all_reduce", nccl):
            # No less than by the table: what was timed through vLLM has its own share beyond NCCL's at any size.
            by_nccl = np.maximum(self.predictor.times_ns("all_reduce", nccl, payload), times)
            times = np.where(payload > self.nccl_from_bytes, by_nccl, times)
        fused = self.is_fused(tokens)
        if fused.any():
            self.asked["all_reduce", ("trtllm", self.tp)] = ("trtllm", self.tp)
            times = np.where(fused, self.predictor.times_ns("all_reduce", ("trtllm", self.tp), payload), times)
        return np.where(tokens > 0, times, 0.0)

    def settled_ns(self, operator: str, payload: Floats, num_gpus: int | None = None) -> Floats:
        """As ``collective_ns``, no more than the time of any larger message: where a table says so, that is its noise,
        or a kernel that the next size is not left to."""
        if self.link is not None:
            return self.collective_ns(operator, payload, num_gpus)
        sizes = distinct(np.concatenate([payload, MESSAGE_BYTES]))
        times = np.minimum.accumulate(self.collective_ns(operator, sizes, num_gpus)[::-1])[::-1]
        least: Floats = times[np.searchsorted(sizes, payload)]
        return least

    def hidden_gather_ns(self, tokens: Floats) -> Floats:
        """The hidden state gathered from the ``tp`` GPUs, each of which has its share of the tokens."""
        return np.where(tokens > 0, self.collective_ns("all_gather", self._hidden_bytes(tokens)), 0.0)

    def collective_ns(self, operator: str, payload: Floats, num_gpus: int | None = None) -> Floats:
        """A collective over ``num_gpus`` (None = the ``tp`` GPUs): vLLM's own where it was measured, else NCCL, else
        the link's bandwidth."""
        gpus = num_gpus or self.tp
        passes = 2.0 if operator == "all_reduce" else 1.0
        self.asked[operator, (LINK, gpus)] = None
        if self.link is not None:
            share = passes * (gpus - 1) / gpus
            return self.link.latency_ns + payload * share / self.link.bandwidth * 1e9
        known = {
            implementation: self.predictor.times_ns(operator, (implementation, gpus), payload)
            for implementation in ("custom", "nccl")
            if self.predictor.has(operator, (implementation, gpus))
        }
        if known:
            del self.asked[operator, (LINK, gpus)]
        self.asked.update({(operator, (each, gpus)): (each, gpus) for each in known})
        if known:
            return known.get("custom", known.get("nccl", payload))
        self.stand_ins[operator] = "70% of the link's bandwidth, 10 us at least"
        link = self.device.link_bandwidth_bytes_per_s or 32e9
        return passes / 2.0 * ring_all_reduce_s(1.0, gpus, 0.7 * link) * payload * 1e9 + 10_000.0

    def send_receive_ns(self, tokens: Floats) -> Floats:
        """Hidden state and residual from one pipeline stage to the next; each GPU sends its share."""
        if self.pp == 1:
            return np.zeros_like(tokens)
        payload = 2.0 * tokens * (self.model.hidden_size * self.precision.activation_bytes) / self.tp
        link = self.device.link_bandwidth_bytes_per_s or 32e9
        self.stand_ins["send_receive"] = "70% of the link's bandwidth, 20 us at least"
        return np.where(tokens > 0, payload / (0.7 * link) * 1e9 + 20_000.0, 0.0)


def _near_keys(key: Key, places: tuple[int, ...]) -> list[Key]:
    """The key itself, then with nearer and farther number formats at ``places``."""
    keys = [key]
    for place in places:
        keys += [
            (*near[:place], dtype, *near[place + 1 :])
            for near in list(keys)
            for dtype in NEAR_DTYPES.get(str(near[place]), ())
        ]
    return keys
