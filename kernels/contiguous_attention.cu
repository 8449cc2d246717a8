// contiguous_attention: paged_attention_split_kv with each sequence's tokens in one piece. The price of paging is the
// difference.
//
// K and V are [num_seqs, longest, num_kv_heads, HEAD_SIZE], so a token's address is computed, not looked up. All else
// is the same code: splits, merge, bytes, FLOPs, grid and block.
#include "split_kv.cuh"

extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, RESIDENT_BLOCKS(SPLIT_THREADS))
    contiguous_attention(Element* __restrict__ out, float* partial_out, float* partial_max, float* partial_sum,
                         int* arrivals, const Element* __restrict__ query, const KvElement* __restrict__ k_cache,
                         const KvElement* __restrict__ v_cache, const int* __restrict__ context_lens, int num_q_heads,
                         int num_kv_heads, long long seq_stride, float k_scale, float v_scale, int tokens_per_split,
                         int last_merges) {
    const int seq = blockIdx.z;
    const decode::HeadTile heads(num_q_heads, num_kv_heads);
    const ContiguousCache cache(seq, seq_stride, num_kv_heads, heads.kv_head);
    attend_split(out, Partials{partial_out, partial_max, partial_sum}, arrivals, query, k_cache, v_cache, cache, heads,
                 context_lens[seq], num_q_heads, tokens_per_split, last_merges, k_scale, v_scale);
}
