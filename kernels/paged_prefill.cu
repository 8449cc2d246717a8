// paged_prefill: causal attention of chunks of prompts over paged KV (the chunk's own keys and values are in the
// cache).
//
// For correctness and comparison: what engines run for prefill is FlashAttention, and that (torch's) is what the
// calibration times and charges. This one is a plain FlashAttention-2 loop on the same tensor-core tile as the decode
// kernels (one device function, mma, with a scalar body on the CPU); it has no warp specialisation and none of Hopper's
// own instructions.
//
// Computes  out[i, h] = sum_t softmax_t(q[i, h] . k[t] / sqrt(d)) v[t] over t <= position of i, for the queries at the
//           end of each context.
// Bytes     K and V of every context once (and again, from L2, for each block of queries and query head of a group),
//           queries and output once.
// FLOPs     4 * HEAD_SIZE * num_q_heads * visible pairs; of a whole prompt of N tokens N (N + 1) / 2 pairs are visible.
// Grid      (ceil(longest chunk / 64), num_q_heads, num_seqs); 64 = 4 warps of 16 queries; at head size 256, 32.
// Block     128 threads; shared: two stages of 32 tokens, K rows padded by 64 bytes and V rows by 16, so that neither's
//           fragments meet in a bank.
#include "attention_tile.cuh"

namespace prefill {
constexpr int WARPS = 4;
constexpr int COLUMNS = HEAD_SIZE <= 128 ? 2 : 1;  // blocks of eight queries per warp
constexpr int WARP_QUERIES = COLUMNS * tile::ROWS;
constexpr int QUERIES = WARPS * WARP_QUERIES;
constexpr int STAGE = 32;  // tokens
constexpr int ROW_BYTES = HEAD_SIZE * sizeof(KvElement);
constexpr int K_STRIDE = ROW_BYTES + 64, V_STRIDE = ROW_BYTES + 16;
constexpr int STAGE_BYTES = STAGE * (K_STRIDE + V_STRIDE);

// Starts copying tokens [first, first + STAGE) of the sequence; past the end the last token is copied again.
DEVICE void copy_stage(unsigned char* stage, const KvElement* k_cache, const KvElement* v_cache,
                       const PagedCache& cache, int first, int tokens) {
    constexpr int PIECES = ROW_BYTES / 16;
    for (int i = threadIdx.x; i < STAGE * PIECES; i += WARPS * 32) {
        const int t = i / PIECES, piece = i % PIECES * 16;
        const long long at = cache.offset(min(first + t, tokens - 1));
        copy_async_16(stage + t * K_STRIDE + piece, reinterpret_cast<const unsigned char*>(k_cache + at) + piece);
        copy_async_16(stage + STAGE * K_STRIDE + t * V_STRIDE + piece,
                      reinterpret_cast<const unsigned char*>(v_cache + at) + piece);
    }
}
}  // namespace prefill

extern "C" __global__ void __launch_bounds__(128)
    paged_prefill(Element* __restrict__ out,          // [all chunks' tokens, num_q_heads, HEAD_SIZE]
                  const Element* __restrict__ query,  // likewise
                  const KvElement* __restrict__ k_cache, const KvElement* __restrict__ v_cache,
                  const int* __restrict__ block_tables, const int* __restrict__ context_lens,
                  const int* __restrict__ query_starts,  // [num_seqs + 1]: where each chunk's rows start
                  int num_q_heads, int num_kv_heads, int max_blocks, long long block_stride, float k_scale,
                  float v_scale) {
    using namespace prefill;
    DYNAMIC_SHARED(unsigned char, shared);
    const int head = blockIdx.y, seq = blockIdx.z, start = query_starts[seq], queries = query_starts[seq + 1] - start;
    const int block_first = static_cast<int>(blockIdx.x) * QUERIES;
    if (block_first >= queries) return;
    const int tokens = context_lens[seq], prior = tokens - queries;
    const int warp = threadIdx.x / 32, first = block_first + warp * WARP_QUERIES;
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads,
                           head / (num_q_heads / num_kv_heads));
    const long long row_stride = static_cast<long long>(num_q_heads) * HEAD_SIZE;
    const long long rows = start * row_stride + head * HEAD_SIZE;

    tile::Queries<COLUMNS> fragments;
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        const int i = first + column * tile::ROWS + tile::lane_group();
        tile::load_query(fragments, column, query + rows + i * row_stride, i < queries);
    }
    tile::Results<COLUMNS> results;
    const float scale = score_scale(k_scale);
    // What the last query of this block sees; a warp whose queries end earlier skips the tiles that none of them sees.
    const int seen = min(tokens, prior + block_first + QUERIES), warp_seen = min(tokens, prior + first + WARP_QUERIES);

    copy_stage(shared, k_cache, v_cache, cache, 0, tokens);
    copy_async_commit();
    for (int token = 0, stage = 0; token < seen; token += STAGE, stage ^= 1) {
        if (token + STAGE < seen)
            copy_stage(shared + (stage ^ 1) * STAGE_BYTES, k_cache, v_cache, cache, token + STAGE, tokens);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();  // everybody's part of this stage is there
#pragma unroll 1
        for (int part = 0; part < STAGE && token + part < warp_seen; part += tile::TOKENS) {
            const unsigned char* k_rows = shared + stage * STAGE_BYTES + part * K_STRIDE;
            const unsigned char* v_rows = shared + stage * STAGE_BYTES + STAGE * K_STRIDE + part * V_STRIDE;
            tile::Keys keys;
            tile::load_keys<true>(keys, reinterpret_cast<const KvElement*>(k_rows), K_STRIDE / sizeof(KvElement),
                                  STAGE - 1);
            float scores[COLUMNS][4];
            tile::multiply_keys(scores, keys, fragments);
            unsigned weights[COLUMNS][2];
            tile::take_scores(weights, scores, results, scale, [&](int t, int row) {
                return token + part + t <= prior + min(first + row, queries - 1);
            });
            tile::Values values;
            tile::load_values<true>(values, reinterpret_cast<const KvElement*>(v_rows), V_STRIDE / sizeof(KvElement),
                                    STAGE - 1);
            tile::multiply_values(results, values, weights);
        }
        __syncthreads();  // nobody reads this stage any more
    }

    tile::finish_sums(results);
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int i = first + column * tile::ROWS + 2 * tile::lane_in_group() + r;
            if (i >= queries) continue;
            const float factor = v_scale / results.sum[column][r];
#pragma unroll
            for (int step = 0; step < tile::STEPS; step++) {
                Element* to = out + rows + i * row_stride + tile::dimension(step);
                to[0] = to_element(results.out[column][step][r] * factor);
                to[1] = to_element(results.out[column][step][r + 2] * factor);
            }
        }
    }
}
