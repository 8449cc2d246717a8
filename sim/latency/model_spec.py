"""The shape of a decoder, as its ``config.json`` says it. Sizes are in parameters, dimensions in elements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """The vision tower beside a decoder, as far as the memory plan needs it."""

    parameters: int
    values_per_image: int = 0
    """Pixel values of one image as the tower takes it."""
    tokens_per_image: int = 0
    """Places in the prompt that one image takes; 0 = not known from the config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer with grouped-query attention, dense or mixture-of-experts."""

    name: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    """Width of the MLP of a dense layer."""
    vocab_size: int
    max_position_embeddings: int
    scaled_context: int | None = None
    """Longest prompt plus output; None = ``max_position_embeddings``, which rope scaling may stretch."""
    served_context: int | None = None
    """The longest that vLLM serves without being told; None = ``longest_context``."""
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    """Tokens that the attention of every layer looks back on; None = all of them, in all layers or in some."""
    num_experts: int = 0
    """Routed experts per MoE layer; 0 = a dense model."""
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    """Width of one expert."""
    shared_expert_intermediate_size: int = 0
    """Width of the experts that every token passes, all together."""
    num_dense_layers: int = 0
    """Layers of an MoE model that have a plain MLP."""
    gated_mlp: bool = True
    """Three MLP matrices (gate, up, down) instead of two."""
    attention_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised, by head unless ``has_wide_qk_norm``."""
    has_wide_qk_norm: bool = False
    """One norm spans the queries of all heads, one the keys, over GPUs too (MiniMax-M2)."""
    has_float32_router: bool = False
    """The matrix that chooses experts is multiplied in 32 bits (MiniMax-M2)."""
    truncates_sampling: bool = False
    """Whether its ``generation_config.json`` sets ``top_p`` or ``top_k``: what requests get that state neither."""
    dtype: str = "bfloat16"
    """How the checkpoint stores its weights, as far as the config says: ``engine.dtype: auto``."""
    dtype_source: str = ""
    """Where the config says so; empty for presets, whose checkpoints are bfloat16."""
    architecture: str = ""
    """vLLM's name of the model's class (``LlamaForCausalLM``); empty = not known."""
    num_window_layers: int = 0
    """Layers with a window where others have none; 0 where ``sliding_window`` says it of all."""
    layer_window: int = 0
    """The window of those layers."""
    vision: VisionSpec | None = None
    """The vision tower of a multimodal model."""
    notes: tuple[str, ...] = ()
    """What a reader of the results should know about how the config was read."""

    @property
    def longest_context(self) -> int:
        """Longest prompt plus output that the model is made for."""
        return self.scaled_context or self.max_position_embeddings

    @property
    def default_context(self) -> int:
        """``max_model_len`` where nothing is said of it."""
        return self.served_context or self.longest_context

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.num_layers - self.num_dense_layers if self.num_experts else 0

    @property
    def q_size(self) -> int:
        """Width of the queries of one token."""
        return self.num_attention_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of the keys (or the values) of one token."""
        return self.num_kv_heads * self.head_size

    @property
    def mlp_matrices(self) -> int:
        """Matrices of an MLP or an expert."""
        return 3 if self.gated_mlp else 2

    @property
    def embedding_parameters(self) -> int:
        """Input embedding and LM head; one matrix where they are tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def attention_parameters(self) -> int:
        """Matrices of one layer's attention (query, key, value, output)."""
        return self.hidden_size * (2 * self.q_size + 2 * self.kv_size)

    @property
    def expert_parameters(self) -> int:
        """Matrices of one routed expert."""
        return self.mlp_matrices * self.hidden_size * self.moe_intermediate_size

    @property
    def shared_expert_parameters(self) -> int:
        """Matrices of one layer's shared experts."""
        return self.mlp_matrices * self.hidden_size * self.shared_expert_intermediate_size

    @property
    def dense_mlp_parameters(self) -> int:
        """Matrices of one dense layer's MLP."""
        return self.mlp_matrices * self.hidden_size * self.intermediate_size

    @property
    def router_parameters(self) -> int:
        """Matrix that chooses the experts of one MoE layer."""
        return self.hidden_size * self.num_experts

    def _layer_parameters(self, experts: int) -> int:
        """All layers' matrices, ``experts`` routed experts counted per MoE layer."""
        moe = self.router_parameters + experts * self.expert_parameters + self.shared_expert_parameters
        num_dense = self.num_layers - self.num_moe_layers
        return (
            self.num_layers * self.attention_parameters
            + num_dense * self.dense_mlp_parameters
            + self.num_moe_layers * moe
        )

    @property
    def linear_parameters(self) -> int:
        """All layers' matrices: what quantisation shrinks."""
        return self._layer_parameters(self.num_experts)

    @property
    def active_linear_parameters(self) -> int:
        """The layers' matrices that one token passes."""
        return self._layer_parameters(self.experts_per_token)

    @property
    def num_parameters(self) -> int:
        """All parameters, norms and biases included."""
        bias = self.q_size + 2 * self.kv_size if self.attention_bias else 0
        norms = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        return self.embedding_parameters + self.linear_parameters + self.num_layers * (norms + bias) + self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token passes: all of a dense model, the chosen experts of an MoE."""
        return self.num_parameters - self.linear_parameters + self.active_linear_parameters
