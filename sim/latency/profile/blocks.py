"""Whole blocks of attention as tables hold them: one layer's attention with its projections, from norm to norm.

Latent and sparse attention were measured as blocks of a few models' sizes, by heads of one GPU. What attention itself
takes is the block less the projections of those sizes (``profile.latent``), so that a model of another width pays its
own projections and the measured attention.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """Sizes of the model whose block was measured; heads are those of one GPU and come with the curve."""

    hidden: int
    query_rank: int
    """Width that queries pass; 0 = queries and keys are one matrix from the hidden state."""
    latent: int
    """Elements kept for each token, the rotary part aside; 0 = keys and values by head."""
    rope: int
    nope: int
    value: int
    index_heads: int = 0
    """Of the small attention that chooses tokens; 0 = every token is attended to."""
    index_size: int = 0
    top_tokens: int = 0
    """Tokens that a query attends to at most; 0 = all."""
    heads_per_kv_head: int = 0
    """Of blocks that keep keys and values by head."""

    def kv_heads(self, heads: int) -> int:
        """KV heads of a block that keeps keys and values by head; at least one."""
        return max(1, heads // self.heads_per_kv_head)

    def projections(self, heads: int) -> list[tuple[int, int]]:
        """(outputs, inputs) of the matrices that are taken off a block: into attention and out of it. What makes keys
        and values of the latent (or of decodes, queries into it) and the index stay with attention."""
        out = (self.hidden, heads * self.value)
        if not self.latent:
            return [((heads + 2 * self.kv_heads(heads)) * (self.nope + self.rope), self.hidden), out]
        query = heads * (self.nope + self.rope)
        return [(self.query_rank + self.latent + self.rope, self.hidden), (query, self.query_rank), out]

    def absorbed(self, heads: int) -> int:
        """Parameters that make keys and values of the latent, and of the index."""
        made = heads * (self.nope + self.value) * self.latent
        chosen = self.index_heads * self.index_size * (self.query_rank or self.hidden)
        return made + chosen + (self.index_size + self.index_heads) * self.hidden * (1 if self.index_heads else 0)

    def elements_per_token(self, heads: int) -> int:
        """Elements of the KV cache that attention reads for a token in sight."""
        if self.latent:
            return self.latent + self.rope
        return 2 * self.kv_heads(heads) * (self.nope + self.rope)

    def decode_flops_per_token(self, heads: int) -> float:
        """Arithmetic of a decode for each token in sight: a latent is key and value of every head."""
        if self.latent:
            return 2.0 * heads * (2 * self.latent + self.rope)
        return 4.0 * heads * (self.nope + self.rope)

    def pair_flops(self, heads: int) -> float:
        """Arithmetic of a prompt for each query-key pair."""
        if self.top_tokens and self.latent:  # sparse kernels take each query as a decode
            return self.decode_flops_per_token(heads)
        return 2.0 * heads * (self.nope + self.rope + self.value)

    def index_flops(self) -> float:
        """Arithmetic of choosing, for each pair."""
        return 2.0 * self.index_heads * self.index_size


MLA, DSA, DSA_GLM5, MSA = "mla", "dsa", "dsa_glm5", "msa"
BLOCKS: dict[str, BlockSizes] = {
    MLA: BlockSizes(hidden=7168, query_rank=1536, latent=512, rope=64, nope=128, value=128),
    DSA: BlockSizes(
        hidden=7168,
        query_rank=1536,
        latent=512,
        rope=64,
        nope=128,
        value=128,
        index_heads=64,
        index_size=128,
        top_tokens=2048,
    ),
    DSA_GLM5: BlockSizes(
        hidden=6144,
        query_rank=2048,
        latent=512,
        rope=64,
        nope=192,
        value=256,
        index_heads=32,
        index_size=128,
        top_tokens=2048,
    ),
    MSA: BlockSizes(
        hidden=6144,
        query_rank=0,
        latent=0,
        rope=0,
        nope=128,
        value=128,
        index_heads=4,
        index_size=128,
        top_tokens=2048,
        heads_per_kv_head=16,
    ),
}
"""DeepSeek-V3 (Kimi K2 has its sizes with fewer heads), DeepSeek-V3.2, GLM-5 and MiniMax-M3, from their configs."""
