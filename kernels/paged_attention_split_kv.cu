// paged_attention_split_kv: flash-decoding. Sequences are cut so that every multiprocessor has work. The top rung.
//
// Adds      splits of tokens_per_split tokens, each a block of its own, chosen by the host from the number of
//           multiprocessors and the batch's lengths (choose_split in gpu_calibrate). The block that finishes last of a
//           sequence and KV head merges them; or, with last_merges = 0, a second small kernel does. One long sequence,
//           or a skewed batch, keeps the whole GPU busy. Where one split is enough there is no merge.
// Computes  as paged_attention_naive.
// Bytes     those of paged_attention_gqa and, with several splits, 2 * (HEAD_SIZE + 2) * 4 per split and query head for
//           the partial results (written and read, mostly in L2). FLOPs: 4 * tokens * num_q_heads * HEAD_SIZE.
// Grid      (num_kv_heads * ceil(group / 8), splits, num_seqs), KV heads fastest: neighbouring blocks read neighbouring
//           parts of the same token rows. Block: 4 warps; shared: warps * 8 * (HEAD_SIZE + 3) floats.
#include "split_kv.cuh"

extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, RESIDENT_BLOCKS(SPLIT_THREADS))
    paged_attention_split_kv(Element* __restrict__ out, float* partial_out, float* partial_max, float* partial_sum,
                             int* arrivals, const Element* __restrict__ query, const KvElement* __restrict__ k_cache,
                             const KvElement* __restrict__ v_cache, const int* __restrict__ block_tables,
                             const int* __restrict__ context_lens, int num_q_heads, int num_kv_heads, int max_blocks,
                             long long block_stride, float k_scale, float v_scale, int tokens_per_split,
                             int last_merges) {
    const int seq = blockIdx.z;
    const decode::HeadTile heads(num_q_heads, num_kv_heads);
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads, heads.kv_head);
    attend_split(out, Partials{partial_out, partial_max, partial_sum}, arrivals, query, k_cache, v_cache, cache, heads,
                 context_lens[seq], num_q_heads, tokens_per_split, last_merges, k_scale, v_scale);
}
