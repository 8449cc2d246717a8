"""The step cost of ranks that step together: MoE models under data parallelism.

In every MoE layer all ranks exchange tokens, so that each waits for the slowest there. All layers are alike, so the
sum over layers of the slowest is the slowest's sum: a step of the group takes the largest of what ranks compute for
themselves, and what they do together: dispatch, the experts for all tokens, combine.

How many tokens that is follows vLLM 0.32.0 (``v1/worker/dp_utils.py``): if every rank's batch fits a CUDA graph, all
are padded to the largest; else none is padded. A rank without work computes a dummy batch of one token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepCost, StepShape, decode_run_by_steps, shape_of
from sim.latency.constant import ConstantCost
from sim.latency.experts import ExpertGroup
from sim.latency.profile.expert_routing import table_imbalance
from sim.latency.profile.graphs import graph_sizes
from sim.latency.tables import Floats, Table

if TYPE_CHECKING:
    from sim.latency.model_spec import ModelSpec
    from sim.latency.profile.cost import ProfileCost
    from sim.latency.roofline import RooflineCost
    from sim.scenario.schema import EngineConfig

IntColumn = npt.NDArray[np.int64]

DUMMY_TOKENS = 1
"""Of the batch that a rank without work computes (``gpu_worker.execute_dummy_batch``)."""


class GroupStep(NamedTuple):
    """One step of all ranks, in nanoseconds and tokens."""

    gpu_ns: int
    """Accelerator time of every rank: waiting for each other is part of it."""
    own_ns: list[int]
    """What each rank computes for itself."""
    padded_tokens: list[int]
    """Tokens of each rank's matrices, padding included."""
    group_tokens: int
    """Tokens that go through the experts."""


@runtime_checkable
class GroupCost(StepCost, Protocol):
    """The step cost of ranks that step together."""

    def group_step(self, shapes: Sequence[StepShape]) -> GroupStep:
        """The step in which each rank computes its shape; an empty one is a dummy batch."""
        ...


class LockstepCost:
    """Step costs of a group. ``own`` leaves out what ranks do together, which is added here once for all."""

    def __init__(self, own: ProfileCost | RooflineCost | ConstantCost, engine: EngineConfig, model: ModelSpec) -> None:
        self.own = own
        self.kind = own.kind
        self.pipeline_stages = own.pipeline_stages
        self.experts = ExpertGroup.of(engine, model) if isinstance(own, ConstantCost) else own.experts
        self.model = model
        is_eager = engine.enforce_eager or self.experts.is_eager
        captured = engine.compilation_config.max_cudagraph_capture_size
        sizes = graph_sizes(engine.max_num_seqs, engine.max_num_batched_tokens, largest_captured=captured)
        self._graphs = [] if is_eager else sizes
        largest = self.experts.dp * engine.max_num_batched_tokens
        self._together = Table(self._together_s, largest, least_ns=0)
        self._floor_ns = own.launch_floor_ns() if is_eager else 0

    # -- a step of the group ----------------------------------------------------------------------

    def group_step(self, shapes: Sequence[StepShape]) -> GroupStep:
        """The step in which each rank computes its shape; an empty one is a dummy batch."""
        gpu_ns, tokens_ns = self.own.gpu_ns, self.own.tokens_ns
        counts = [shape.num_prefill_tokens + shape.num_decodes + shape.num_draft_tokens for shape in shapes]
        largest = max(max(counts), DUMMY_TOKENS)
        graphs = self._graphs
        if graphs and largest <= graphs[-1]:
            sizes = [graphs[bisect_left(graphs, largest)]] * len(counts)
        else:
            sizes = [count or DUMMY_TOKENS for count in counts]
        own_ns = []
        for shape, count, size in zip(shapes, counts, sizes, strict=True):
            alone_ns = gpu_ns(shape)
            own_ns.append(alone_ns if size == count else alone_ns + tokens_ns(size) - tokens_ns(count))
        group_tokens = sum(sizes)
        step_ns = max(own_ns) + self._together.ns(group_tokens)
        return GroupStep(max(step_ns, self._floor_ns), own_ns, sizes, group_tokens)

    def _together_s(self, tokens: Floats) -> Floats:
        total: Floats = sum(self.own.group_terms_ns(tokens).values(), np.zeros_like(tokens)) / 1e9
        return total

    # -- the interface of StepCost ----------------------------------------------------------------

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of this step on one rank while all others have nothing to do."""
        return self.group_step([shape] + [StepShape()] * (self.experts.dp - 1)).gpu_ns

    def step_ns(self, *counts: int, **further: int) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``."""
        return self.gpu_ns(shape_of(*counts, **further))

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step on one rank."""
        return self.own.host_ns(shape)

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> IntColumn:
        """``gpu_ns`` of ``num_steps`` pure decode steps in a row."""
        return decode_run_by_steps(self, num_decodes, decode_context_tokens, num_steps)

    def empty_step_ns(self) -> int:
        """As one rank's."""
        return self.own.empty_step_ns()

    def terms(self, columns: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
        """Nanoseconds by term of recorded steps, each on one rank; they sum to ``gpu_ns``. ``waiting`` is for the
        slowest rank (or, without CUDA graphs, for the host's launches). Profiles only."""
        if self.own.kind != "profile":
            raise TypeError(f"a {self.own.kind} cost has no terms of recorded steps")
        mine: dict[str, IntColumn] = self.own.terms({**columns, "gpu_ns": columns["own_ns"]})  # type: ignore[union-attr]
        sizes, place = np.unique(columns["group_tokens"], return_inverse=True)
        charged = np.array([self._together.ns(size) for size in sizes.tolist()], dtype=np.int64)
        together = {
            name: np.rint(times).astype(np.int64)
            for name, times in self.own.group_terms_ns(sizes.astype(float)).items()
        }
        together["experts"] += charged - np.sum(list(together.values()), axis=0, dtype=np.int64)
        terms = dict(mine)
        for name, times in together.items():
            terms[name] = terms.get(name, np.zeros_like(columns["gpu_ns"])) + times[place]
        terms["waiting"] = columns["gpu_ns"] - columns["own_ns"] - charged[place]
        return terms

    def describe(self) -> dict[str, object]:
        """One rank's description, and how the experts are spread."""
        group, model = self.experts, self.model
        told: dict[str, object] = {
            "data_parallel_size": group.dp,
            "expert_parallel_size": group.ep,
            "all2all_backend": group.backend,
        }
        if group.is_whole and self.kind != "constant":
            measured = table_imbalance(model.num_experts, model.experts_per_token, group.ep)
            told["expert_load_imbalance"] = group.imbalance or (measured if self.kind == "profile" else 1.0)
        return {**self.own.describe(), **told}
