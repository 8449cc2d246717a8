"""The measured step cost: a profile's operator times put together as an engine's step, in whole nanoseconds.

A step = layers x (matrices and element-wise kernels at the step's tokens, two all-reduces under tensor parallelism,
attention of prefill chunks, attention of decodes) + embedding + LM head and sampler over its rows. Steps small enough
for a CUDA graph are padded to a captured size. All curves become integer tables with integer knots here; stepping reads
those only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

from sim.latency.base import StepShape
from sim.latency.experts import ExpertGroup
from sim.latency.fitted import Fitted
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec
from sim.latency.parallel import Link
from sim.latency.parts import UNMEASURED_ERROR, one_part
from sim.latency.pipelining import is_asynchronous
from sim.latency.precision import resolve_precision
from sim.latency.profile.all_reduce import fused_limit_bytes, nccl_from_bytes, quantises_apart
from sim.latency.profile.evidence import evidence
from sim.latency.profile.exchange import group_terms_ns
from sim.latency.profile.expert_kernels import expert_backend
from sim.latency.profile.gemm_kernels import has_wide_kernel
from sim.latency.profile.graphs import graph_sizes, padded
from sim.latency.profile.integers import IntColumn, Segments, context_knots, finer, rising, whole_sqrt
from sim.latency.profile.layer_kernels import elementwise_ns, launches_ns
from sim.latency.profile.library import Found
from sim.latency.profile.operator_tables import Floats
from sim.latency.profile.profiled_operators import STEP_NS, ProfiledOperators
from sim.latency.profile.swap import SwapTime
from sim.latency.profile.terms import CountTerms, check_terms, step_terms
from sim.latency.profile.written import families_read, hash_of
from sim.latency.sampling import Way, filter_ns, way_of
from sim.latency.tables import Rate, Table

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

HOST_STEP_NS = 470_000
HOST_REQUEST_NS = 23_000
"""Host time of a step and of each request in it, where the profile has none. Fitted on the training half of the public
Qwen3-32B points on H100s (vLLM 0.12, which did not schedule ahead, so that all of it shows, and sorted logits, which is
charged apart): ``docs/accuracy.md``."""


class ProfileCost:
    """Step costs from a profile. See the module's text; ``breakdown`` names every term."""

    kind = "profile"
    operators_type: type[ProfiledOperators] = ProfiledOperators

    def __init__(
        self,
        found: Found,
        model: ModelSpec,
        gpu: GpuSpec,
        engine: EngineConfig,
        *,
        host_overhead_ms: float | None = None,
        link: Link | None = None,
        time_scale: float = 1.0,
        expert_load_imbalance: float | None = None,
        without: frozenset[str] = frozenset(),
        fitted: Fitted | None = None,
        sampling: str | None = None,
    ) -> None:
        """``without``: terms (``terms.TERMS``) that cost nothing here, to see what they make of a step or of a run.
        ``fitted``: factors of terms and host times, as found from measured runs. ``sampling``: as
        ``latency.sampling``."""
        check_terms(without)
        pp = engine.pipeline_parallel_size
        self.profile = found.profile
        self.fitted = fitted
        self._factor = _one if fitted is None else fitted.factor
        self._is_asynchronous = is_asynchronous(engine)
        self.model, self._gpu = model, gpu
        truncates = model.truncates_sampling if sampling is None else sampling == "top_p"
        self._filter: Way | None = way_of(engine.vllm_version) if truncates else None
        """How tokens are drawn from the most probable ones; None = they are not."""
        self.notes = found.notes
        self.precision = precision = resolve_precision(engine, gpu, model)
        self.pipeline_stages = pp
        self.experts = experts = ExpertGroup.of(engine, model, expert_load_imbalance)
        self.operators = ops = self._operators_of(found, engine, link)
        per_decode = 1 if engine.speculative is None else 1 + engine.speculative.num_speculative_tokens
        captured = engine.compilation_config.max_cudagraph_capture_size
        sizes = graph_sizes(engine.max_num_seqs, engine.max_num_batched_tokens, per_decode, captured)
        self._graphs = [] if engine.enforce_eager or experts.is_eager else sizes
        self._knots = context_knots(engine.max_model_len)
        self._window = model.sliding_window or self._knots[-1]
        """Tokens that a query sees at most, in all layers."""
        self.time_scale = time_scale
        layers = time_scale * model.num_layers / pp
        self._decode_layers = 0.0 if "decode_attention" in without else layers * self._factor("decode_attention")
        """What the times of one layer's decode attention are multiplied by."""
        self._first_launched = self._graphs[-1] + 1 if self._graphs else 1
        self._waits_for_launches = False  # while it is found out
        self._waits_for_launches = self._has_to_launch(engine.max_num_batched_tokens)
        """Whether any batch beyond the graphs takes longer to launch than to compute."""
        tokens = Table(
            self._tokens_s, engine.max_num_batched_tokens, least_ns=1, may_fall=ops.has_dispatch(precision.weights)
        )
        self.token_terms = CountTerms(tokens, self.token_terms_ns, without, least_ns=1)
        rows = Table(self._rows_s, engine.max_num_seqs, least_ns=0)
        self.row_terms = CountTerms(rows, self.row_terms_ns, without, least_ns=0)
        self._tokens_ns, self._rows_ns = self.token_terms.ns, self.row_terms.ns
        # What is charged, as far as lists hold it; with terms left out each count is added up when it comes.
        self._token_values, self._row_values = ([], []) if without else (tokens.values, rows.values)
        self._decode: dict[int, Segments] = {}
        self._mixed: dict[int, Segments] = {}
        self._decode_times: list[Floats] = []
        self._mixed_times: list[Floats] = []
        """One layer's times at the knots, by batch from 1 on."""
        self._prefill: dict[int, Segments] = {}
        self._prior: dict[int, Segments] = {}
        self._verify_pair = Rate(ops.pair_ns() * self._decode_layers)
        prefill_layers = 0.0 if "prefill_attention" in without else layers * self._factor("prefill_attention")
        self._prefill_layers = prefill_layers
        self._swap = SwapTime(ops, gpu, 0.0 if "swap" in without else time_scale)
        if engine.preemption == "swap" and self._swap.stand_in is not None:
            ops.stand_ins["host_copy"] = self._swap.stand_in
        self._set_host(host_overhead_ms)
        for segments in (self._mixed_segments, self._prefill_segments):
            segments(1)  # so that ``describe`` knows every stand-in from the start

    def _operators_of(self, found: Found, engine: EngineConfig, link: Link | None) -> ProfiledOperators:
        """What the layers are made of, by the kernels that this engine runs."""
        capability = found.device.compute_capability
        return self.operators_type(
            profile=found.profile,
            device=found.device,
            model=self.model,
            precision=self.precision,
            tp=engine.tensor_parallel_size,
            pp=engine.pipeline_parallel_size,
            link=link,
            experts=self.experts,
            expert_backend=expert_backend(engine, capability, self.precision.weights),
            fused_bytes=fused_limit_bytes(engine, capability),
            has_wide_gemm=has_wide_kernel(engine),
            nccl_from_bytes=nccl_from_bytes(engine),
            quantises_apart=quantises_apart(engine),
        )

    def _has_to_launch(self, most_tokens: int) -> bool:
        if self.experts.is_lockstep or self._first_launched > most_tokens:
            return False
        fewest = np.array([float(self._first_launched)])
        with np.errstate(over="ignore", invalid="ignore"):  # as in ``Table``: ``build_step_cost`` refuses later
            computing = sum(self.token_terms_ns(fewest).values()) / self.time_scale
        return not self._graphs or bool(self._launches_ns(fewest) / self.pipeline_stages > computing)

    def _set_host(self, host_overhead_ms: float | None) -> None:
        host = self.profile.host
        self._host_basis = ("estimate", UNMEASURED_ERROR, "the default host time, of one machine and version")
        if host_overhead_ms is not None:
            self.host_step_ns, self.host_request_ns = round(host_overhead_ms * 1e6), 0
            self._host_basis = ("assumption", 0.0, "host_overhead_ms of the scenario")
        elif host is not None:
            self.host_step_ns, self.host_request_ns = host.step_ns, host.request_ns
            self._host_basis = ("measured", UNMEASURED_ERROR, "host time, whose error the profile does not state")
        else:
            self.host_step_ns, self.host_request_ns = HOST_STEP_NS, HOST_REQUEST_NS
        if self.fitted is not None:
            step_ns, request_ns = self.fitted.ns("host_step_ms"), self.fitted.ns("host_request_us")
            self.host_step_ns = self.host_step_ns if step_ns is None else step_ns
            self.host_request_ns = self.host_request_ns if request_ns is None else request_ns

    # -- terms ------------------------------------------------------------------------------------

    def token_terms_ns(self, tokens: Floats) -> dict[str, Floats]:
        """One stage's time that depends on the number of tokens alone, by those terms that the engine has. Of ranks
        that step together (``LockstepCost``), only what each computes for itself."""
        ops, model = self.operators, self.model
        sizes = padded(tokens, self._graphs)
        num_moe, num_dense = model.num_moe_layers, model.num_layers - model.num_moe_layers
        matrices = model.num_layers * ops.attention_projections_ns(sizes)
        elementwise = ops.lookup_ns(sizes)
        if num_dense:
            matrices += num_dense * ops.mlp_ns(sizes, model.intermediate_size)
            elementwise += num_dense * elementwise_ns(ops, sizes, model.intermediate_size)
        if num_moe:
            elementwise += num_moe * elementwise_ns(ops, sizes, model.shared_expert_intermediate_size)
        terms = {"matrices": matrices / ops.pp, "elementwise": elementwise / ops.pp}
        if num_moe:
            experts = ops.router_and_shared_ns if self.experts.is_lockstep else ops.experts_ns
            terms["experts"] = num_moe * experts(sizes) / ops.pp
        if ops.tp > 1:
            count = 2.0 * model.num_layers + 1.0
            if self.experts.is_sequence_parallel:  # outputs of experts come back whole, shared out over the GPUs
                count -= num_moe
                terms["all_gather"] = num_moe * ops.hidden_gather_ns(sizes) / ops.pp
            terms["all_reduce"] = count * ops.all_reduce_ns(sizes) / ops.pp
        if ops.pp > 1:
            terms["send_receive"] = ops.send_receive_ns(sizes)
        return self.scaled_with_launches(terms, tokens, sizes)

    def scaled_with_launches(self, terms: dict[str, Floats], tokens: Floats, sizes: Floats) -> dict[str, Floats]:
        """``terms`` as fitted, with what launching takes beyond them; ``sizes``: tokens, padded to a graph's."""
        ops = self.operators
        terms = {name: times * self._factor(name) for name, times in terms.items()}
        if self._waits_for_launches:
            # What no graph holds is launched kernel by kernel, which small steps wait for. Attention and the LM head
            # come on top: sums that do not know each other, so that a step between is charged up to both.
            slower = np.maximum(self._launches_ns(sizes) / ops.pp - sum(terms.values()), 0.0)
            terms["launches"] = np.where(tokens >= self._first_launched, slower, 0.0)
        return {name: times * self.time_scale for name, times in terms.items()}

    def row_terms_ns(self, rows: Floats) -> dict[str, Floats]:
        """One stage's time that depends on the number of rows sampled alone, by term."""
        some = rows > 0
        sampling, overhead = np.where(some, self.operators.sampler_ns(rows), 0.0), np.where(some, STEP_NS, 0.0)
        head = self.operators.head_ns(rows) - sampling - overhead
        if self._filter is not None:
            sampling = sampling + filter_ns(self._filter, rows, self.model.vocab_size, self._gpu)
        terms = {"lm_head": head * self._factor("lm_head"), "sampling": sampling, "step_overhead": overhead}
        scale = self.time_scale / self.operators.pp
        terms = {name: times * scale for name, times in terms.items()}
        if self.fitted is not None and self._is_asynchronous:
            terms["step_overhead"] = terms["step_overhead"] + self.fitted.exposed_ns(rows) / self.operators.pp
        return terms

    def group_terms_ns(self, tokens: Floats) -> dict[str, Floats]:
        """What ranks that step together do together with ``tokens`` tokens of them all, padding included, by term."""
        terms = group_terms_ns(self.operators, self.time_scale, tokens)
        return {name: times * self._factor(name) for name, times in terms.items()}

    def _launches_ns(self, tokens: Floats) -> Floats:
        """Launching the kernels of what no graph holds: all by an eager engine, else those that compiling left."""
        return launches_ns(self.operators, tokens, is_compiled=bool(self._graphs))

    def launch_floor_ns(self) -> int:
        """Without CUDA graphs, what launching a step's operators one by one takes at least."""
        return round(float(launches_ns(self.operators, np.ones(1), is_compiled=False)[0]) * self.time_scale)

    def _tokens_s(self, tokens: Floats) -> Floats:
        total: Floats = sum(self.token_terms_ns(tokens).values(), np.zeros_like(tokens)) / 1e9
        return total

    def _rows_s(self, rows: Floats) -> Floats:
        total: Floats = sum(self.row_terms_ns(rows).values(), np.zeros_like(rows)) / 1e9
        return total

    def breakdown(self, shape: StepShape) -> dict[str, int]:
        """Nanoseconds of one stage of this step by term; their sum is ``gpu_ns``."""
        rows = shape.num_prefills + shape.num_decodes + shape.num_draft_tokens
        terms = {
            **self.token_terms.by_term([shape.num_tokens]),
            **self.row_terms.by_term([rows]),
        }
        return {name: int(times[0]) for name, times in terms.items()} | self._other_terms_ns(shape)

    def _other_terms_ns(self, shape: StepShape) -> dict[str, int]:
        prefills, decodes = shape.num_prefills, shape.num_decodes
        chunks = (prefills, shape.num_prefill_tokens, shape.prefill_context_tokens, shape.prefill_attention_pairs)
        beside = (decodes, shape.decode_context_tokens, shape.verify_attention_pairs)
        return {
            "prefill_attention": self._prefill_attention_ns(*chunks) if prefills else 0,
            "decode_attention": self._decode_attention_ns(*beside, *chunks[:2]) if decodes else 0,
            "swap": self._swap.ns(shape.swap_bytes),
        }

    def _decode_segments(self, batch: int) -> Segments:
        """All layers' decode attention of ``batch`` requests, by their context together."""
        layer_ns = self.operators.decode_attention_ns
        return self._segments(self._decode, self._decode_times, batch, layer_ns, self._decode_layers)

    def _mixed_segments(self, batch: int) -> Segments:
        """As ``_decode_segments``, for steps that hold prefill chunks too."""
        layer_ns = self.operators.mixed_decode_attention_ns
        return self._segments(self._mixed, self._mixed_times, batch, layer_ns, self._decode_layers)

    def _prior_segments(self, batch: int) -> Segments:
        """What ``batch`` chunks take at least for reading their context together: as decodes do."""
        layer_ns = self.operators.decode_attention_ns
        return self._segments(self._prior, self._decode_times, batch, layer_ns, self._prefill_layers)

    def _segments(
        self,
        known: dict[int, Segments],
        times: list[Floats],
        batch: int,
        layer_ns: Callable[[int, Floats], Floats],
        layers: float,
    ) -> Segments:
        """Of ``batch``, made from one layer's times; noise of the tables must not make a larger batch cheaper."""
        segments = known.get(batch)
        if segments is None:
            knots = np.minimum(np.array(self._knots, dtype=np.float64), self._window)
            while len(times) < batch:
                longer = np.maximum.accumulate(layer_ns(len(times) + 1, knots))
                times.append(np.maximum(longer, times[-1]) if times else longer)
            segments = Segments([batch * knot for knot in self._knots], times[batch - 1] * layers)
            known[batch] = segments
        return segments

    def _prefill_segments(self, batch: int) -> Segments:
        """All layers' attention of ``batch`` prompts without prior KV, by the tokens of one. A longer prompt takes no
        less, whatever the tables say."""
        known = self._prefill.get(batch)
        if known is None:
            sizes = finer(self._knots)
            times = rising(self.operators.prefill_ns(batch, np.array(sizes, dtype=np.float64)))
            known = self._prefill[batch] = Segments(sizes, times * self._prefill_layers)
        return known

    def _decode_attention_ns(
        self, num: int, context_tokens: int, verify_pairs: int, num_chunks: int, chunk_tokens: int
    ) -> int:
        """All layers' attention of ``num`` decodes beside these chunks, as it is charged. Kernels take one query of a
        request as a decode, so that chunks of one token make no mixed batch; but a longer chunk is never cheaper."""
        if not num_chunks:
            ns = (self._decode.get(num) or self._decode_segments(num)).at(context_tokens)
        else:
            ns = (self._mixed.get(num) or self._mixed_segments(num)).at(context_tokens)
            if chunk_tokens == num_chunks:
                ns = min(ns, self._decode_segments(num).at(context_tokens))
        if verify_pairs:
            # The KV is read once for all queries of a request, unless there are so many that arithmetic takes longer.
            ns = max(ns, self._verify_pair.ns(verify_pairs))
        return ns

    def tokens_ns(self, tokens: int) -> int:
        """One stage's time that depends on the number of tokens alone, as it is charged."""
        return self._tokens_ns(tokens)

    def swaps_ns(self, num_bytes: IntColumn) -> IntColumn:
        """Copies of KV between GPU and host, as they are charged."""
        return self._swap.many_ns(num_bytes)

    def terms(self, columns: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
        """Nanoseconds by term of recorded steps, see ``terms.step_terms``."""
        return step_terms(self, columns)

    def _prefill_attention_ns(self, num: int, tokens: int, context: int, pairs: int) -> int:
        """All layers' attention of ``num`` prefill chunks, as it is charged. No query sees more than the window.

        A chunk takes as long as the prompt without prior KV that has as many query-key pairs (512 tokens after 2,048
        cached ones: one of 1,536), and at least what a decode takes to read its context. So one token after 100,000
        cached ones is a decode, and a longer chunk is never cheaper.
        """
        pairs >>= 1
        if pairs > tokens * self._window:
            pairs = tokens * self._window
        segments = self._prefill.get(num) or self._prefill_segments(num)
        ns = segments.at(isqrt(2 * pairs // num) or 1)
        if context > tokens:
            if context > tokens + num * self._window:
                context = tokens + num * self._window
            prior = self._prior.get(num) or self._prior_segments(num)
            return max(ns, prior.at(context))
        return ns

    def prefill_attentions_ns(self, num: int, pairs: IntColumn, context: IntColumn, tokens: IntColumn) -> IntColumn:
        """``_prefill_attention_ns`` of many steps of ``num`` chunks each: the same integers, as arrays."""
        pairs = np.minimum(pairs >> 1, tokens * self._window)
        times = self._prefill_segments(num).many(np.maximum(whole_sqrt(2 * pairs // num), 1))
        seen = np.minimum(context, tokens + num * self._window)
        prior = np.where(context > tokens, self._prior_segments(num).many(seen), 0)
        result: IntColumn = np.maximum(times, prior)
        return result

    # -- the interface of StepCost ----------------------------------------------------------------

    def step_ns(
        self,
        num_prefills: int,
        num_prefill_tokens: int,
        prefill_context_tokens: int,
        prefill_attention_pairs: int,
        num_decodes: int,
        decode_context_tokens: int,
        num_sampled: int,
        num_draft_tokens: int = 0,
        verify_attention_pairs: int = 0,
        swap_bytes: int = 0,
    ) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``. vLLM computes a row of logits for every request of a step,
        sampled or not, so that ``num_sampled`` changes nothing."""
        rows = num_decodes + num_draft_tokens
        tokens, sampled = num_prefill_tokens + rows, num_prefills + rows
        try:
            ns = self._token_values[tokens] + self._row_values[sampled]
        except IndexError:
            ns = self._tokens_ns(tokens) + self._rows_ns(sampled)
        if num_prefills:
            ns += self._prefill_attention_ns(
                num_prefills, num_prefill_tokens, prefill_context_tokens, prefill_attention_pairs
            )
        if num_decodes:
            ns += self._decode_attention_ns(
                num_decodes, decode_context_tokens, verify_attention_pairs, num_prefills, num_prefill_tokens
            )
        if swap_bytes:
            ns += self._swap.ns(swap_bytes)
        return ns

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of one stage of this step, at least 1."""
        return self.step_ns(
            shape.num_prefills,
            shape.num_prefill_tokens,
            shape.prefill_context_tokens,
            shape.prefill_attention_pairs,
            shape.num_decodes,
            shape.decode_context_tokens,
            shape.num_sampled,
            shape.num_draft_tokens,
            shape.verify_attention_pairs,
            shape.swap_bytes,
        )

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> IntColumn:
        """``gpu_ns`` of ``num_steps`` pure decode steps in a row, element by element the same integers."""
        fixed = self._tokens_ns(num_decodes) + self._rows_ns(num_decodes)
        if not num_decodes:
            return np.full(num_steps, fixed, dtype=np.int64)
        return fixed + self._decode_segments(num_decodes).run(decode_context_tokens, num_decodes, num_steps)

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step: a fixed part and a part per scheduled request."""
        return self.host_step_ns + self.host_request_ns * (shape.num_prefills + shape.num_decodes)

    def empty_step_ns(self) -> int:
        """The fixed host time, at least 1."""
        return max(1, self.host_step_ns)

    def describe(self) -> dict[str, object]:
        """Which profile, the errors it states, what stands in for operators that it lacks, and the host's share."""
        profile = self.profile
        return {
            "kind": self.kind,
            "estimate": False,
            "profile": profile.name,
            "profile_hash": hash_of(profile),
            **families_read(profile),
            "source": profile.source.kind,
            "origin": profile.source.origin,
            "kernels": {name: profile.operators[name].kernel for name in sorted(profile.operators)},
            "median_errors": {
                name: {kind: round(error.median, 4) for kind, error in sorted(kinds.items())}
                for name, kinds in sorted(profile.errors.items())
            },
            "stand_ins": dict(sorted(self.operators.stand_ins.items())),
            "evidence": {**evidence(self.operators), "host": one_part(*self._host_basis)},
            "time_scale": self.time_scale,
            "notes": list(self.notes),
            **({"scaled_from": profile.device.gpu} if self.operators.device.gpu != profile.device.gpu else {}),
            "model": self.model.name,
            "dtype": self.precision.weights,
            "kv_cache_dtype": self.precision.kv,
            "tensor_parallel_size": self.operators.tp,
            "pipeline_parallel_size": self.operators.pp,
            "sampling": "plain" if self._filter is None else f"top_p, {self._filter}",
            "host_overhead_ms": self.host_step_ns / 1e6,
            "host_overhead_per_request_ms": self.host_request_ns / 1e6,
            **({} if self.fitted is None else {"fit": self.fitted.describe()}),
        }


def _one(term: str) -> float:
    """The factor of a term that nothing was fitted for."""
    return 1.0
