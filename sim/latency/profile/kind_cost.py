"""The measured step cost of a model of several kinds of layers: the sum over kinds, each from its own curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.graphs import padded
from sim.latency.profile.integers import IntColumn, Segments, finer, rising
from sim.latency.profile.kind_operators import KindOperators
from sim.latency.profile.operator_tables import Floats
from sim.latency.tables import Rate

if TYPE_CHECKING:
    from sim.latency.model_spec import ModelSpec


def has_several_kinds(model: ModelSpec) -> bool:
    """Whether one shape does not say it: attention of several kinds or windows, latents, states, parts in formats of
    their own."""
    windows = {mixer.window for mixer, _ in model.mixers}
    return not model.is_plain or len(windows) > 1 or any(kind.formats for kind, _ in model.kinds)


class KindCost(ProfileCost):
    """``ProfileCost`` that sums over kinds of layers.

    Chunks cost by query-key pairs where attention looks back on everything, and by their tokens in layers with a window
    or a state, whatever came before them.
    """

    operators_type = KindOperators
    operators: KindOperators

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._by_tokens: dict[int, Segments] = {}
        self._reading: list[Floats] = []
        super().__init__(*arguments, **settings)
        self._made = Rate(self.operators.made_ns_per_token() * self._prefill_layers)
        self._follows_tokens = any(times.follows_tokens for times, _ in self.operators.mixers())

    def token_terms_ns(self, tokens: Floats) -> dict[str, Floats]:
        """See ``ProfileCost``."""
        ops, model = self.operators, self.model
        sizes = padded(tokens, self._graphs)
        terms = {
            "matrices": ops.matrices_ns(sizes) / ops.pp,
            "elementwise": (ops.lookup_ns(sizes) + ops.small_ns(sizes)) / ops.pp,
        }
        if model.moes:
            terms["experts"] = ops.experts_of_all_ns(sizes, own_alone=self.experts.is_lockstep) / ops.pp
        if ops.tp > 1:
            count = sum(count * kind.num_blocks for kind, count in model.kinds) + 1.0
            if self.experts.is_sequence_parallel:
                count -= model.num_moe_layers
                terms["all_gather"] = model.num_moe_layers * ops.hidden_gather_ns(sizes) / ops.pp
            terms["all_reduce"] = count * ops.all_reduce_ns(sizes) / ops.pp
        if ops.pp > 1:
            terms["send_receive"] = ops.send_receive_ns(sizes)
        return self.scaled_with_launches(terms, tokens, sizes)

    def _prior_segments(self, batch: int) -> Segments:
        """What ``batch`` chunks take at least for reading their context together, where all of it is read."""
        return self._segments(self._prior, self._reading, batch, self.operators.reading_ns, self._prefill_layers)

    def _token_segments(self, batch: int) -> Segments:
        """All layers whose prompts cost by tokens, of ``batch`` prompts, by the tokens of one."""
        known = self._by_tokens.get(batch)
        if known is None:
            sizes = finer(self._knots)
            times = rising(self.operators.by_tokens_ns(batch, np.array(sizes, dtype=np.float64)))
            known = self._by_tokens[batch] = Segments(sizes, times * self._prefill_layers)
        return known

    def _prefill_attention_ns(self, num: int, tokens: int, context: int, pairs: int) -> int:
        """See ``ProfileCost``."""
        ns = super()._prefill_attention_ns(num, tokens, context, pairs) + self._made.ns(context)
        if self._follows_tokens:
            ns += self._token_segments(num).at(-(-tokens // num))
        return ns

    def prefill_attentions_ns(self, num: int, pairs: IntColumn, context: IntColumn, tokens: IntColumn) -> IntColumn:
        """See ``ProfileCost``."""
        times = super().prefill_attentions_ns(num, pairs, context, tokens) + self._made.many_ns(context)
        if self._follows_tokens:
            times = times + self._token_segments(num).many(-(-tokens // num))
        return times
