// What paged_attention_split_kv and its contiguous twin share: where the results of a split go, and the kernel that
// merges them.
#pragma once
#include "decode.cuh"
#include "reduce.cuh"

#ifndef SPLIT_THREADS
#define SPLIT_THREADS 128
#endif

// Splits that a sequence has; one of no tokens has one.
DEVICE int splits_of(int tokens, int tokens_per_split) {
    return tokens <= 0 ? 1 : tokens / tokens_per_split + (tokens % tokens_per_split > 0);
}

// What the splits of a sequence found for its query heads.
struct Partials {
    float* out;      // [num_seqs, num_q_heads, splits, HEAD_SIZE], relative to the split's own maximum, not divided
    float* largest;  // [num_seqs, num_q_heads, splits]
    float* sum;      // likewise
};

// out[d] = sum_i 2^(max_i - max) out_i[d] / sum_i 2^(max_i - max) sum_i over the `used` splits from `first` on, by one
// warp: a lane weighs one split of 32 and holds four dimensions (eight at head size 256). Eight loads are under way.
DEVICE void merge_row(Element* out, const Partials& partials, long long first, int used) {
    constexpr int QUADS = (HEAD_SIZE + 127) / 128, BATCH = 8;
    const int lane = threadIdx.x % 32;
    float largest = MINUS_INFINITY;
    for (int i = lane; i < used; i += 32) largest = fmaxf(largest, load_from_others(partials.largest + first + i));
    largest = warp_max(largest);

    float sums[QUADS][4] = {}, total = 0.0f;
    for (int base = 0; base < used; base += 32) {
        const int mine = base + lane;
        float factor = 0.0f;
        if (mine < used && largest > MINUS_INFINITY) {  // else there is no token at all
            factor = exp2_fast(load_from_others(partials.largest + first + mine) - largest);
            total += factor * load_from_others(partials.sum + first + mine);
        }
        for (int batch = 0; batch < min(32, used - base); batch += BATCH) {
            float values[BATCH][QUADS][4];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
#pragma unroll
                for (int q = 0; q < QUADS; q++) {
                    // Past the end, or past the head: a valid one, not used.
                    const long long part = first + min(base + batch + i, used - 1);
                    const int quad = min(lane + 32 * q, HEAD_SIZE / 4 - 1);
                    load_four_from_others(values[i][q], partials.out + part * HEAD_SIZE + 4 * quad);
                }
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const float weight = __shfl_sync(ALL_LANES, factor, batch + i);
#pragma unroll
                for (int q = 0; q < QUADS; q++) {
#pragma unroll
                    for (int k = 0; k < 4; k++) sums[q][k] += weight * values[i][q][k];
                }
            }
        }
    }
    total = warp_sum(total);
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int d = 4 * (lane + 32 * q);
        if (d >= HEAD_SIZE) continue;
#pragma unroll
        for (int k = 0; k < 4; k++) out[d + k] = to_element(total > 0.0f ? sums[q][k] / total : 0.0f);
    }
}

// One block: split blockIdx.y of sequence blockIdx.z. With a single split the result is final; else it goes to
// `partials`. With `last_merges` the block that finishes last of a sequence and head tile merges them (`arrivals`, one
// counter for each, 0 before and after a launch); else the kernel merge_splits has to follow.
template <class Cache>
DEVICE void attend_split(Element* out, const Partials& partials, int* arrivals, const Element* query,
                         const KvElement* k_cache, const KvElement* v_cache, const Cache& cache,
                         const decode::HeadTile& heads, int tokens, int num_q_heads, int tokens_per_split,
                         int last_merges, float k_scale, float v_scale) {
    const int seq = blockIdx.z, split = blockIdx.y, splits = gridDim.y;
    const long long begin = static_cast<long long>(split) * tokens_per_split;
    const long long first = static_cast<long long>(seq) * num_q_heads + heads.first_head;
    const int end = tokens - begin < tokens_per_split ? tokens : static_cast<int>(begin) + tokens_per_split;
    if (split > 0 && begin >= tokens) return;  // a shorter sequence of the batch: nobody reads this split's results
    decode::block(query + first * HEAD_SIZE, heads.rows, k_cache, v_cache, cache, static_cast<int>(begin), end,
                  score_scale(k_scale), [&](int row, int d, const decode::Merged& merged) {
                      if (splits == 1) {
                          out[(first + row) * HEAD_SIZE + d] = to_element(decode::quotient(merged) * v_scale);
                          return;
                      }
                      const long long part = (first + row) * splits + split;
                      partials.out[part * HEAD_SIZE + d] = merged.value * v_scale;
                      if (d == 0) {
                          partials.largest[part] = merged.largest;
                          partials.sum[part] = merged.sum;
                      }
                  });
    if (splits == 1 || !last_merges) return;

    DYNAMIC_SHARED(int, ticket);
    const int used = splits_of(tokens, tokens_per_split);
    int* arrived = arrivals + static_cast<long long>(seq) * gridDim.x + blockIdx.x;
    __threadfence();  // this thread's results are visible to all blocks ...
    __syncthreads();  // ... and so are those of all threads of this block before it counts itself
    if (threadIdx.x == 0) {
        *ticket = atomicAdd(arrived, 1);
        if (*ticket == used - 1) *arrived = 0;
    }
    __syncthreads();
    if (*ticket != used - 1) return;
    __threadfence();
    for (int row = threadIdx.x / 32; row < heads.rows; row += blockDim.x / 32)
        merge_row(out + (first + row) * HEAD_SIZE, partials, (first + row) * splits, used);
}

// The merge as a kernel of its own. Bytes: (HEAD_SIZE + 2) * 4 per split and query head, little beside the split.
// Grid (ceil(num_q_heads / 4), num_seqs), block 128: a warp per query head.
extern "C" __global__ void __launch_bounds__(128)
    merge_splits(Element* __restrict__ out, float* partial_out, float* partial_max, float* partial_sum,
                 const int* __restrict__ context_lens, int num_q_heads, int tokens_per_split, int splits) {
    const int head = blockIdx.x * 4 + threadIdx.x / 32, seq = blockIdx.y;
    if (head >= num_q_heads) return;
    const long long row = static_cast<long long>(seq) * num_q_heads + head;
    merge_row(out + row * HEAD_SIZE, Partials{partial_out, partial_max, partial_sum}, row * splits,
              splits_of(context_lens[seq], tokens_per_split));
}
