// paged_attention_gqa: K and V are read once per KV head, on tensor cores.
//
// Adds      one block serves all query heads that share a KV head (up to eight; larger groups take several blocks side
//           by side): each byte of the cache is read once, not num_q_heads / num_kv_heads times. The products run on
//           tensor cores, which leaves the instruction slots to the loads (attention_tile.cuh), and the next tile's
//           loads are under way while one is worked on (decode.cuh).
// Leaves    one block per sequence and KV head: few or uneven sequences leave multiprocessors without work.
// Computes  as paged_attention_naive.
// Bytes     2 * tokens * num_kv_heads * HEAD_SIZE * sizeof(kv); query and output once.
// FLOPs     4 * tokens * num_q_heads * HEAD_SIZE that count; the tensor cores do 8 rows per KV head, used or not.
// Grid      (num_kv_heads * ceil(group / 8), num_seqs); block: 4 warps; shared: warps * 8 * (HEAD_SIZE + 3)
//           floats, to merge the warps' results.
#include "decode.cuh"

#ifndef GQA_THREADS
#define GQA_THREADS 128
#endif

extern "C" __global__ void __launch_bounds__(GQA_THREADS, RESIDENT_BLOCKS(GQA_THREADS))
    paged_attention_gqa(Element* __restrict__ out, const Element* __restrict__ query,
                        const KvElement* __restrict__ k_cache, const KvElement* __restrict__ v_cache,
                        const int* __restrict__ block_tables, const int* __restrict__ context_lens, int num_q_heads,
                        int num_kv_heads, int max_blocks, long long block_stride, float k_scale, float v_scale) {
    const int seq = blockIdx.y;
    const decode::HeadTile heads(num_q_heads, num_kv_heads);
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads, heads.kv_head);
    const long long row = (static_cast<long long>(seq) * num_q_heads + heads.first_head) * HEAD_SIZE;
    decode::block(query + row, heads.rows, k_cache, v_cache, cache, 0, context_lens[seq], score_scale(k_scale),
                  [&](int r, int d, const decode::Merged& merged) {
                      out[row + r * HEAD_SIZE + d] = to_element(decode::quotient(merged) * v_scale);
                  });
}
