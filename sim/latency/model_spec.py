"""The shape of a decoder, as its ``config.json`` says it. Sizes are in parameters, dimensions in elements."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from sim.latency.attention_kinds import GroupedAttention, LatentAttention
from sim.latency.layer_kinds import PLAIN, Experts, LayerKind, Mixer, Mlp
from sim.latency.state_layers import StateLayer

Thing = TypeVar("Thing", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """The vision tower beside a decoder: its size, its shape, and what an image is to it."""

    parameters: int
    values_per_image: int = 0
    """Pixel values of one image as the tower takes it."""
    tokens_per_image: int = 0
    """Embeddings of one image; 0 = not known from the config, because it depends on the image."""
    frame: tuple[int, int] = (0, 0)
    """Tokens that vLLM puts before and after the embeddings of an image, as a part of it."""
    largest_embeds: int = 0
    """Embeddings of the largest image that the model's processor lets through; 0 = not known."""
    layers: int = 0
    width: int = 0
    heads: int = 0
    mlp_width: int = 0
    mlp_matrices: int = 2
    patch_values: int = 0
    """Values of one patch."""
    patches_per_embed: int = 0
    """Patches, the tower's own tokens, that become one embedding: 16 for Gemma 3, 4 for Qwen3-VL; 0 = not known."""

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.width // self.heads if self.heads else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer: its layers, each of one of several kinds, and what lies around them."""

    name: str
    layers: tuple[tuple[LayerKind, int], ...]
    """Runs of equal layers, in order."""
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    scaled_context: int | None = None
    """Longest prompt plus output; None = ``max_position_embeddings``, which rope scaling may stretch."""
    served_context: int | None = None
    """The longest that vLLM serves without being told; None = ``longest_context``."""
    tie_word_embeddings: bool = False
    truncates_sampling: bool = False
    """Whether its ``generation_config.json`` sets ``top_p`` or ``top_k``: what requests get that state neither."""
    dtype: str = "bfloat16"
    """How the checkpoint stores its weights, as far as the config says: ``engine.dtype: auto``."""
    dtype_source: str = ""
    """Where the config says so; empty for presets, whose checkpoints are bfloat16."""
    kv_dtype: str = ""
    """The KV cache's format that the checkpoint asks for (``kv_cache_dtype: auto``); empty = as activations."""
    architecture: str = ""
    """vLLM's name of the model's class (``LlamaForCausalLM``); empty = not known."""
    vision: VisionSpec | None = None
    """The vision tower of a multimodal model."""
    mtp_layers: int | None = 0
    """Layers beyond ``layers`` that draft (multi-token prediction); None = not known."""
    notes: tuple[str, ...] = ()
    """What a reader of the results should know about how the config was read."""
    kinds: tuple[tuple[LayerKind, int], ...] = field(init=False, repr=False, compare=False)
    """Each kind of layer once, with the number of its layers, in order of appearance."""
    mixers: tuple[tuple[Mixer, int], ...] = field(init=False, repr=False, compare=False)
    """Each attention or state with the number of its layers."""
    mlps: tuple[tuple[Mlp, int], ...] = field(init=False, repr=False, compare=False)
    """Each plain MLP with the number of its layers, those beside experts included."""
    moes: tuple[tuple[Experts, int], ...] = field(init=False, repr=False, compare=False)
    """Each set of experts with the number of its layers."""

    def __post_init__(self) -> None:
        kinds = _counted(self.layers)
        counted = {
            "kinds": kinds,
            "mixers": _counted((kind.mixer, count) for kind, count in kinds if kind.mixer is not None),
            "mlps": _counted((kind.mlp, count) for kind, count in kinds if kind.mlp is not None),
            "moes": _counted((kind.experts, count) for kind, count in kinds if kind.experts is not None),
        }
        for name, value in counted.items():
            object.__setattr__(self, name, value)

    @property
    def longest_context(self) -> int:
        """Longest prompt plus output that the model is made for."""
        return self.scaled_context or self.max_position_embeddings

    @property
    def default_context(self) -> int:
        """``max_model_len`` where nothing is said of it."""
        return self.served_context or self.longest_context

    @property
    def num_layers(self) -> int:
        """Layers of all kinds."""
        return sum(count for _, count in self.layers)

    @property
    def layer_list(self) -> list[LayerKind]:
        """The kind of every layer, in order."""
        return [kind for kind, count in self.layers for _ in range(count)]

    # -- what several kinds of layers have in common ----------------------------------------------

    def alike(self, *names: str) -> tuple[tuple[LayerKind, int], ...]:
        """One kind for all that have the same ``names``, with the number of their layers: ``alike("mixer")``."""
        found: dict[tuple[object, ...], tuple[LayerKind, int]] = {}
        for kind, count in self.kinds:
            key = tuple(getattr(kind, name) for name in names)
            first, total = found.get(key, (kind, 0))
            found[key] = (first, total + count)
        return tuple(found.values())

    @property
    def is_plain(self) -> bool:
        """Whether all layers have one attention with keys and values, windows aside, and an MLP or experts: what the
        curves of a profile are of."""
        mixers = [mixer for mixer, _ in self.mixers]
        grouped = [each for each in mixers if isinstance(each, GroupedAttention)]
        shapes = {(each.num_heads, each.num_kv_heads, each.head_size) for each in grouped}
        odd = any(
            each.index or each.value_size or each.has_gate or each.values_are_keys or each.shares_kv for each in grouped
        )
        whole = all(kind.num_blocks == 2 and not (kind.mlp and kind.experts) for kind, _ in self.kinds)
        same = len(shapes) == 1 and len(self.mlps) <= 1 and len(self.moes) <= 1
        return whole and same and not odd and len(grouped) == len(mixers)

    @property
    def _attention(self) -> GroupedAttention | LatentAttention | None:
        """The first kind of attention that looks back on everything, else the first of all."""
        found = [mixer for mixer, _ in self.mixers if not isinstance(mixer, StateLayer)]
        return min(found, key=lambda mixer: mixer.window is not None, default=None)

    @property
    def _grouped(self) -> GroupedAttention | None:
        attention = self._attention
        return attention if isinstance(attention, GroupedAttention) else None

    @property
    def num_attention_heads(self) -> int:
        """Query heads, of the layers that look back on everything."""
        return 0 if self._attention is None else self._attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        """KV heads of those layers; 1 where each GPU keeps all."""
        return 1 if self._grouped is None else self._grouped.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of a query's head in those layers."""
        attention = self._attention
        if isinstance(attention, LatentAttention):
            return attention.nope_size + attention.rope_size
        return 0 if attention is None else attention.head_size

    @property
    def attention_bias(self) -> bool:
        """Whether query, key and value have a bias."""
        return self._grouped is not None and self._grouped.has_bias

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""
        return self._grouped is not None and self._grouped.qk_norm

    @property
    def has_wide_qk_norm(self) -> bool:
        """One norm spans the queries of all heads."""
        return self._grouped is not None and self._grouped.has_wide_qk_norm

    @property
    def sliding_window(self) -> int | None:
        """Tokens that the attention of every layer looks back on; None = all of them, in all layers or in some."""
        windows = {mixer.window for mixer, _ in self.mixers}
        return windows.pop() if len(windows) == 1 else None

    @property
    def num_window_layers(self) -> int:
        """Layers with a window where others have none; 0 where ``sliding_window`` says it of all."""
        if self.sliding_window is not None:
            return 0
        return sum(count for mixer, count in self.mixers if mixer.window is not None)

    @property
    def layer_window(self) -> int:
        """The longest window of those layers."""
        return 0 if not self.num_window_layers else max(mixer.window or 0 for mixer, _ in self.mixers)

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP of a dense layer."""
        return max((mlp.width for mlp, _ in self.mlps), default=0)

    @property
    def _experts(self) -> Experts | None:
        return next((moe for moe, _ in self.moes), None)

    @property
    def num_experts(self) -> int:
        """Routed experts per MoE layer; 0 = a dense model."""
        return 0 if self._experts is None else self._experts.num

    @property
    def experts_per_token(self) -> int:
        """Routed experts that a token passes."""
        return 0 if self._experts is None else self._experts.per_token

    @property
    def moe_intermediate_size(self) -> int:
        """Width of one expert."""
        return 0 if self._experts is None else self._experts.width

    @property
    def shared_expert_intermediate_size(self) -> int:
        """Width of the experts that every token passes, all together."""
        return 0 if self._experts is None else self._experts.shared_width

    @property
    def has_float32_router(self) -> bool:
        """The matrix that chooses experts is multiplied in 32 bits."""
        return self._experts is not None and self._experts.has_float32_router

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return sum(count for _, count in self.moes)

    @property
    def num_dense_layers(self) -> int:
        """Layers of an MoE model that have a plain MLP and no experts."""
        if not self.moes:
            return 0
        return sum(count for kind, count in self.kinds if kind.mlp is not None and kind.experts is None)

    @property
    def mlp_matrices(self) -> int:
        """Matrices of an MLP or an expert."""
        each = [mlp.matrices_each for mlp, _ in self.mlps] + [moe.matrices_each for moe, _ in self.moes]
        return max(each, default=PLAIN)

    @property
    def gated_mlp(self) -> bool:
        """Three MLP matrices (gate, up, down) instead of two."""
        return self.mlp_matrices > PLAIN

    @property
    def q_size(self) -> int:
        """Width of the queries of one token."""
        return 0 if self._attention is None else self._attention.q_size

    @property
    def kv_size(self) -> int:
        """Width of the keys (or the values) of one token."""
        return self.num_kv_heads * self.head_size

    # -- parameters -------------------------------------------------------------------------------

    @property
    def embedding_parameters(self) -> int:
        """Input embedding and LM head; one matrix where they are tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def expert_parameters(self) -> int:
        """Matrices of one routed expert."""
        return 0 if self._experts is None else self._experts.each(self.hidden_size)

    @property
    def linear_parameters(self) -> int:
        """All layers' matrices: what quantisation shrinks."""
        return sum(count * kind.linear_parameters(self.hidden_size) for kind, count in self.kinds)

    @property
    def active_linear_parameters(self) -> int:
        """The layers' matrices that one token passes."""
        return sum(
            count * kind.linear_parameters(self.hidden_size, kind.experts.per_token if kind.experts else 0)
            for kind, count in self.kinds
        )

    @property
    def num_parameters(self) -> int:
        """All parameters, norms and biases included."""
        small = sum(count * kind.small_parameters(self.hidden_size) for kind, count in self.kinds)
        return self.embedding_parameters + self.linear_parameters + small + self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token passes: all of a dense model, the chosen experts of an MoE."""
        return self.num_parameters - self.linear_parameters + self.active_linear_parameters


def _counted(runs: Iterable[tuple[Thing, int]]) -> tuple[tuple[Thing, int], ...]:
    """Add up the counts of equal things, in order of appearance."""
    totals: dict[Thing, int] = {}
    for thing, count in runs:
        totals[thing] = totals.get(thing, 0) + count
    return tuple(totals.items())
