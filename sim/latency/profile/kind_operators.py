"""What each part of a step takes where a model has several kinds of layers: sums over them, each with its own sizes.

Every kind is looked at through ``ProfiledOperators`` of a model that has that kind alone, so that what holds for one
shape holds for each of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from sim.latency.attention_kinds import GroupedAttention, Matrix
from sim.latency.layer_kinds import LayerKind
from sim.latency.profile.expert_kernels import OF_MXFP4, padded_for_marlin
from sim.latency.profile.file import Key
from sim.latency.profile.layer_kernels import START_NS, elementwise_ns
from sim.latency.profile.mixer_times import BlockTimes, MixerTimes, mixer_times
from sim.latency.profile.operator_tables import Floats
from sim.latency.profile.profiled_operators import ProfiledOperators
from sim.latency.profile.speed_of_light import LAUNCH_NS
from sim.latency.state_layers import StateLayer

OF_BLOCK = frozenset({"kv_b", "index"})
"""Matrices that are part of a measured block of attention (``profile.blocks``)."""
TYPICAL_BATCH, TYPICAL_TOKENS = 16, 1024
"""Decodes and their context, and the tokens of a prompt, by which kinds share the time of attention in the evidence."""
AFTER_NORM = ("qkv", "qkv_a", "q", "kv_a", "up", "in")
"""Matrices whose input a norm leaves, in 8 bits where they multiply in those."""
STATE_SMALL_KERNELS = 2
"""Of a layer with a state beside its table's: what splits and gates its inputs."""
TABLE_NAMES = {"int4_g32": "int4"}
"""Number formats that tables call by another name: their INT4 experts are Kimi K2's, scales for each 32."""


@dataclass(slots=True)
class KindOperators(ProfiledOperators):
    """``ProfiledOperators`` of a model of several kinds of layers; attention is that of the mean layer."""

    _views: dict[tuple[object, ...], ProfiledOperators] = field(default_factory=dict)
    _mixers: list[tuple[MixerTimes, float]] = field(default_factory=list)

    # -- one kind ---------------------------------------------------------------------------------

    def _view(self, kind: LayerKind, weights: str | None = None, hidden: int | None = None) -> ProfiledOperators:
        """Operators of a model that has layers of ``kind`` alone, all in the number format ``weights``."""
        key = (kind, weights, hidden)
        known = self._views.get(key)
        if known is None:
            model = replace(self.model, layers=((kind, 1),), hidden_size=hidden or self.model.hidden_size)
            own = {each.name: getattr(self, each.name) for each in fields(ProfiledOperators) if each.init}
            precision = replace(
                self.precision, weights=weights or self.precision.weights, follows_checkpoint=weights is None
            )
            known = self._views[key] = ProfiledOperators(**{**own, "model": model, "precision": precision})
            known.predictor = self.predictor
        return known

    def _format(self, kind: LayerKind, part: str) -> str:
        found = self.precision.format_of(kind, part)
        return TABLE_NAMES.get(found, found)

    def _expert_format(self, kind: LayerKind) -> str:
        """The format of routed experts, by the kernel that multiplies it where it has several."""
        found = self._format(kind, "experts")
        if found != "mxfp4":
            return found
        asked = OF_MXFP4.get(self.expert_backend or "")
        if asked is not None:
            return asked
        key = self._expert_key("mxfp4_marlin", kind)
        is_marlins = self.predictor.has_exactly("moe", key) or not self.predictor.has("moe", ("mxfp4", *key[1:]))
        return "mxfp4_marlin" if is_marlins and self.predictor.has("moe", key) else "mxfp4"

    def _expert_key(self, dtype: str, kind: LayerKind) -> Key:
        moe = kind.experts
        if moe is None:
            raise ValueError("a layer without experts has no curves of them")
        hidden = moe.latent_size or self.model.hidden_size
        return (dtype, hidden, moe.width, moe.num, moe.per_token, *self.experts.split)

    def _products_ns(self, tokens: Floats, kind: LayerKind, matrices: Sequence[Matrix]) -> Floats:
        """One after another, each in its own number format."""
        total = np.zeros_like(tokens)
        after = {part: self.is_normed_ready(tokens) for part in AFTER_NORM} | {"down": not self.quantises_apart}
        for part, outputs, inputs in matrices:
            ready = after.get(part, False)
            total = total + self.linear_ns(tokens, outputs, inputs, self._format(kind, part), is_ready=ready)
        return total

    def _times_of(self, kind: LayerKind) -> MixerTimes | None:
        if kind.mixer is None:
            return None
        return mixer_times(self._view(kind), kind.mixer, self._format(kind, "out"))

    # -- matrices ---------------------------------------------------------------------------------

    def matrices_ns(self, tokens: Floats) -> Floats:
        """Around attention and states, and of plain MLPs, of all layers."""
        total = np.zeros_like(tokens)
        for kind, count in self.model.alike("mixer", "mlp", "formats"):
            matrices: list[Matrix] = []
            if kind.mixer is not None:
                is_block = isinstance(self._times_of(kind), BlockTimes)
                own = kind.mixer.matrices(self.model.hidden_size, self.tp)
                matrices += [each for each in own if not (is_block and each.part in OF_BLOCK)]
            if kind.mlp is not None:
                matrices += kind.mlp.matrices(self.model.hidden_size, self.tp)
            total = total + count * self._products_ns(tokens, kind, matrices)
        return total

    def small_ns(self, tokens: Floats) -> Floats:
        """Element-wise kernels of all layers."""
        return sum((count * self._small_ns(tokens, kind) for kind, count in self.model.kinds), np.zeros_like(tokens))

    def _small_ns(self, tokens: Floats, kind: LayerKind) -> Floats:
        shared = 0 if kind.experts is None else kind.experts.shared_width
        width = (0 if kind.mlp is None else kind.mlp.width) + shared
        view, mixer = self._view(kind, self._format(kind, "out")), kind.mixer
        if isinstance(mixer, GroupedAttention) and kind.num_blocks == 2:
            return elementwise_ns(view, tokens, width)
        size = self.precision.activation_bytes
        norm = self.kernel_ns("rms_norm", self.model.hidden_size, tokens, 4.0 * size)
        joined = np.maximum(norm - (LAUNCH_NS + START_NS), 0.0)
        total = kind.num_blocks * np.where(self.is_fused(tokens), joined, norm)
        if isinstance(mixer, GroupedAttention):
            rotary = (view.heads + view.kv_heads) * mixer.head_size
            total += self.kernel_ns("rotary", rotary, tokens, 2.0 * size)
            total += self.kernel_ns("reshape_and_cache", 2 * view.kv_heads * mixer.head_size, tokens, 2.0 * size)
        if isinstance(mixer, StateLayer) and mixer.num_heads:
            values = max(1, mixer.num_heads * mixer.head_size // self.tp)
            total += self.kernel_ns("rms_norm", values, tokens, 4.0 * size)
            total += self.small_kernels_ns(tokens, STATE_SMALL_KERNELS)
        if width:
            matrices = self.model.mlp_matrices
            total += self.kernel_ns("silu_and_mul", max(1, width // self.tp), tokens, matrices * size)
        return total

    # -- experts ----------------------------------------------------------------------------------

    def experts_of_all_ns(self, tokens: Floats, *, own_alone: bool) -> Floats:
        """Router, routed and shared experts of all layers; ``own_alone``: without the routed ones, which ranks that
        step together compute together."""
        total = np.zeros_like(tokens)
        for kind, count in self._moes():
            routed = 0.0 if own_alone else self._routed_ns(tokens, kind)
            total = total + count * self._view(kind, self._format(kind, "shared")).router_and_shared_ns(tokens, routed)
            latent, hidden = kind.experts.latent_size if kind.experts else 0, self.model.hidden_size
            if latent:
                into, out = Matrix("latent", latent, hidden), Matrix("latent", hidden, latent)
                total = total + count * self._products_ns(tokens, kind, (into, out))
        return total

    def _moes(self) -> list[tuple[LayerKind, int]]:
        return [(kind, count) for kind, count in self.model.alike("experts", "formats") if kind.experts is not None]

    def _routed_ns(self, tokens: Floats, kind: LayerKind) -> Floats:
        weights = self._expert_format(kind)
        _, hidden, width, *_ = key = self._expert_key(weights, kind)
        if weights != "mxfp4_marlin" or self.predictor.has_exactly("moe", key) or kind.experts is None:
            return self._view(kind, weights, int(hidden)).routed_ns(tokens)
        # Other shapes' curves: of the padded matrices, and what widens the hidden state and cuts it off again.
        wider, longer = padded_for_marlin(int(width), int(hidden), self.experts.split[0])
        padded_kind = replace(kind, experts=replace(kind.experts, width=wider))
        routed = self._view(padded_kind, weights, longer).routed_ns(tokens)
        if longer == hidden:
            return routed
        return routed + 2.0 * self.kernel_ns("pad", longer, tokens, 2.0 * self.precision.activation_bytes)

    def routed_ns(self, tokens: Floats) -> Floats:
        """Routed experts of the mean layer that has some."""
        total = np.zeros_like(tokens)
        for kind, count in self._moes():
            total = total + count * self._routed_ns(tokens, kind)
        return total / max(1, self.model.num_moe_layers)

    # -- attention and states of the mean layer ---------------------------------------------------

    def mixers(self) -> list[tuple[MixerTimes, float]]:
        """Each with its share of the layers."""
        if not self._mixers:
            for kind, count in self.model.alike("mixer", "formats"):
                times = self._times_of(kind)
                if times is not None:
                    self._mixers.append((times, count / self.model.num_layers))
        return self._mixers

    def decode_attention_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``ProfiledOperators``."""
        each = (share * times.decode_ns(batch, contexts) for times, share in self.mixers())
        return sum(each, np.zeros_like(contexts))

    def mixed_decode_attention_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``ProfiledOperators``."""
        each = (share * times.mixed_decode_ns(batch, contexts) for times, share in self.mixers())
        return sum(each, np.zeros_like(contexts))

    def reading_ns(self, batch: int, contexts: Floats) -> Floats:
        """As ``decode_attention_ns``, of what looks back on all tokens."""
        chosen = ((times, share) for times, share in self.mixers() if not times.follows_tokens)
        return sum((share * times.decode_ns(batch, contexts) for times, share in chosen), np.zeros_like(contexts))

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """Of what costs by query-key pairs."""
        chosen = ((times, share) for times, share in self.mixers() if not times.follows_tokens)
        return sum((share * times.prefill_ns(batch, chunks) for times, share in chosen), np.zeros_like(chunks))

    def by_tokens_ns(self, batch: int, chunks: Floats) -> Floats:
        """Prompts in layers that cost by tokens: windows and states."""
        chosen = ((times, share) for times, share in self.mixers() if times.follows_tokens)
        return sum((share * times.prefill_ns(batch, chunks) for times, share in chosen), np.zeros_like(chunks))

    def made_ns_per_token(self) -> float:
        """Keys and values made anew, for each token of a chunk's context."""
        return sum(share * times.made_ns_per_token for times, share in self.mixers())

    def pair_ns(self) -> float:
        """See ``ProfiledOperators``."""
        return sum(share * times.pair_ns for times, share in self.mixers())

    def mixing_ns(self) -> dict[str, dict[str, float]]:
        """See ``ProfiledOperators``."""
        at = np.array([float(TYPICAL_TOKENS)])
        found: dict[str, dict[str, float]] = {"decode_attention": {}, "prefill_attention": {}}
        for times, share in self.mixers():
            each = (times.decode_ns(TYPICAL_BATCH, at), times.prefill_ns(1, at) + at * times.made_ns_per_token)
            for of_operator, operator, ns in zip(found.values(), times.operators, each, strict=True):
                of_operator[operator] = of_operator.get(operator, 0.0) + share * float(ns[0])
        return found
