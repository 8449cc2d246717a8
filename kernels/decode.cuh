// Decode attention of one group of query heads over a range of tokens by one block: the warps take tiles of 16 tokens
// in turn, each keeps its own running softmax in registers, and they are merged once at the end.
//
// Bytes under way: a warp loads the keys of its next tile as soon as the current ones are multiplied, and the next
// values likewise, so 2 * 16 * HEAD_SIZE elements (8 KB at head size 128 in 16 bits) are always on their way per warp.
// Twelve warps per multiprocessor have 96 KB in flight; keeping an H200's memory busy takes about 40 KB by Little's law
// (4.8 TB/s x about 1 us / 132 multiprocessors).
#pragma once
#include "attention_tile.cuh"

// Blocks of `threads` that the registers of a multiprocessor must hold: 16, 12 or 8 warps by head size.
#define RESIDENT_BLOCKS(threads) (RESIDENT_THREADS >= (threads) ? RESIDENT_THREADS / (threads) : 1)
#define RESIDENT_THREADS (HEAD_SIZE <= 64 ? 512 : HEAD_SIZE <= 128 ? 384 : 256)

namespace decode {

constexpr int ROWS = tile::ROWS;
// Head size 256 has no registers left for a second tile: its loop loads keys and values of a tile together.
constexpr bool AHEAD = HEAD_SIZE <= 128;

// The query heads that this block serves: at most eight of the group that shares `kv_head`. blockIdx.x counts them,
// tiles of a group next to one another so that the second one finds K and V in L2.
struct HeadTile {
    int kv_head, first_head, rows;

    DEVICE HeadTile(int num_q_heads, int num_kv_heads) {
        const int group = num_q_heads / num_kv_heads, tiles = (group + ROWS - 1) / ROWS;
        const int first = static_cast<int>(blockIdx.x) % tiles * ROWS;
        kv_head = static_cast<int>(blockIdx.x) / tiles;
        first_head = kv_head * group + first;
        rows = min(ROWS, group - first);
    }
};

// Tokens [begin, end) of the sequence; begin is a multiple of 16. The first two entries of the block table are asked
// for before `end` is known to cover them: the sequence's length, itself just being loaded, is not waited for.
template <class Cache>
DEVICE void attend(tile::Results<1>& results, const tile::Queries<1>& queries, const KvElement* k_cache,
                   const KvElement* v_cache, const Cache& cache, int begin, int end, float scale) {
    const int step = static_cast<int>(blockDim.x) / 32 * tile::TOKENS;
    int token = begin + static_cast<int>(threadIdx.x) / 32 * tile::TOKENS;
    int block = cache.look_up(token), next_block = cache.look_up(token + step);
    if (token >= end) return;
    tile::Keys keys;
    tile::Values values;
    if (AHEAD) {
        const long long at = cache.offset_in(block, token);
        tile::load_keys(keys, k_cache + at, cache.token_stride, end - token - 1);
        tile::load_values(values, v_cache + at, cache.token_stride, end - token - 1);
    }
    for (; token < end; token += step) {
        const int last = end - token - 1, next = token + step;
        if (!AHEAD) {
            const long long at = cache.offset_in(block, token);
            tile::load_keys(keys, k_cache + at, cache.token_stride, last);
            tile::load_values(values, v_cache + at, cache.token_stride, last);
        }
        const long long next_at = cache.offset_in(next_block, next);
        float scores[1][4];
        tile::multiply_keys(scores, keys, queries);
        if (AHEAD && next < end) tile::load_keys(keys, k_cache + next_at, cache.token_stride, end - next - 1);
        unsigned weights[1][2];
        tile::take_scores(weights, scores, results, scale, [last](int t, int) { return t <= last; });
        tile::multiply_values(results, values, weights);
        if (AHEAD && next < end) tile::load_values(values, v_cache + next_at, cache.token_stride, end - next - 1);
        block = next_block;
        next_block = cache.look_up(next + step);  // long before it is needed
    }
}

// Lays down each warp's results in shared memory: (HEAD_SIZE + 3) * 8 floats per warp.
struct WarpResults {
    static constexpr int STRIDE = HEAD_SIZE + 1;  // rows of different query heads start in different banks
    float* base;

    DEVICE float* out(int warp) const { return base + warp * ROWS * (HEAD_SIZE + 3); }
    DEVICE float* largest(int warp) const { return out(warp) + ROWS * STRIDE; }
    DEVICE float* sum(int warp) const { return largest(warp) + ROWS; }

    DEVICE void put(tile::Results<1>& results) const {
        const int warp = threadIdx.x / 32, j = tile::lane_in_group();
        tile::finish_sums(results);
#pragma unroll
        for (int step = 0; step < tile::STEPS; step++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                out(warp)[(2 * j + i % 2) * STRIDE + tile::dimension(step) + i / 2] = results.out[0][step][i];
        }
        if (tile::lane_group() == 0) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                largest(warp)[2 * j + r] = results.largest[0][r];
                sum(warp)[2 * j + r] = results.sum[0][r];
            }
        }
    }
};

// One number of a merged row, not yet divided by the sum.
struct Merged {
    float value, largest, sum;
};

// Merges what `count` partial results say of one number: at(i) gives the i-th. Weights relative to one maximum are
// brought to the common one.
template <class At>
DEVICE Merged merge(int count, At at) {
    Merged merged{0.0f, MINUS_INFINITY, 0.0f};
    for (int i = 0; i < count; i++) merged.largest = fmaxf(merged.largest, at(i).largest);
    if (merged.largest == MINUS_INFINITY) return merged;  // no token at all
    for (int i = 0; i < count; i++) {
        const Merged part = at(i);
        const float factor = exp2_fast(part.largest - merged.largest);
        merged.value += factor * part.value;
        merged.sum += factor * part.sum;
    }
    return merged;
}

DEVICE float quotient(const Merged& merged) { return merged.sum > 0.0f ? merged.value / merged.sum : 0.0f; }

// The whole of a block's work but for where its results go: `store(row, dimension, merged)` with row < tile rows.
template <class Cache, class Store>
DEVICE void block(const Element* query_rows, int rows, const KvElement* k_cache, const KvElement* v_cache,
                  const Cache& cache, int begin, int end, float scale, Store store) {
    DYNAMIC_SHARED(float, shared);
    const WarpResults warps{shared};
    const int row = tile::lane_group();
    tile::Queries<1> queries;
    tile::load_query(queries, 0, query_rows + row * HEAD_SIZE, row < rows);
    tile::Results<1> results;
    attend(results, queries, k_cache, v_cache, cache, begin, end, scale);
    warps.put(results);
    __syncthreads();
    const int num_warps = blockDim.x / 32;
    for (int i = threadIdx.x; i < rows * HEAD_SIZE; i += blockDim.x) {
        const int r = i / HEAD_SIZE, d = i % HEAD_SIZE;
        store(r, d, merge(num_warps, [&](int warp) {
                  return Merged{warps.out(warp)[r * WarpResults::STRIDE + d], warps.largest(warp)[r],
                                warps.sum(warp)[r]};
              }));
    }
}

}  // namespace decode
