// paged_attention_vectorised: 16-byte loads, several of them under way per thread.
//
// Adds      8 elements (16 in fp8) per load instead of one. A key takes HEAD_SIZE / 8 lanes, so a warp works on several
//           tokens at once with fewer shuffles for each; four tokens per lane are loaded before the first is used.
// Leaves    K and V are still read once per query head.
// Computes  as paged_attention_naive.
// Bytes     num_q_heads / num_kv_heads times what is needed. FLOPs: 4 * tokens * num_q_heads * HEAD_SIZE.
// Grid      (num_q_heads, num_seqs); block: 128 threads; shared: 32 + 128 + HEAD_SIZE * (1 + 4 warps) floats
//           (reductions, scores of a tile, query, each warp's sum of values).
#include "paged_kv.cuh"
#include "running_softmax.cuh"

namespace vectorised {
constexpr int VECTOR = 16 / sizeof(KvElement);  // elements of one load
constexpr int LANES = HEAD_SIZE / VECTOR;       // lanes that hold one token
DEVICE constexpr int power_of_two(int least) { return least <= 1 ? 1 : 2 * power_of_two((least + 1) / 2); }
constexpr int SPAN =
    power_of_two(LANES);             // lanes set aside for one token (at head size 80 and 96 some have nothing to do)
constexpr int PER_WARP = 32 / SPAN;  // tokens that a warp takes at once
constexpr int WARPS = SCORE_TILE / 32;
constexpr int UNROLL = 4;
static_assert(HEAD_SIZE % VECTOR == 0, "rows are whole vectors");
}  // namespace vectorised

extern "C" __global__ void __launch_bounds__(SCORE_TILE, 4)
    paged_attention_vectorised(Element* __restrict__ out, const Element* __restrict__ query,
                               const KvElement* __restrict__ k_cache, const KvElement* __restrict__ v_cache,
                               const int* __restrict__ block_tables, const int* __restrict__ context_lens,
                               int num_q_heads, int num_kv_heads, int max_blocks, long long block_stride, float k_scale,
                               float v_scale) {
    using namespace vectorised;
    DYNAMIC_SHARED(float, scratch);
    float* scores = scratch + 32;
    float* shared_query = scores + SCORE_TILE;
    float* warp_sums = shared_query + HEAD_SIZE;  // [WARPS][HEAD_SIZE]
    const int head = blockIdx.x, seq = blockIdx.y, thread = threadIdx.x, tokens = context_lens[seq];
    const int warp = thread / 32, lane = thread % 32, slot = lane / SPAN, part = lane % SPAN;
    const bool holds = part < LANES;
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads,
                           head / (num_q_heads / num_kv_heads));
    const long long row = (static_cast<long long>(seq) * num_q_heads + head) * HEAD_SIZE;

    const float scale = score_scale(k_scale);
    for (int d = thread; d < HEAD_SIZE; d += SCORE_TILE) shared_query[d] = to_float(query[row + d]) * scale;
    __syncthreads();
    float mine[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) mine[i] = holds ? shared_query[part * VECTOR + i] : 0.0f;

    RunningSoftmax softmax;
    float sums[VECTOR] = {};
    constexpr int STEP = PER_WARP * WARPS;
    for (int start = 0; start < tokens; start += SCORE_TILE) {
        const int count = min(SCORE_TILE, tokens - start);
        // A warp's loop runs as long for all its lanes: they meet in the shuffles.
        for (int first = warp * PER_WARP; first < count; first += UNROLL * STEP) {
            unsigned words[UNROLL][4] = {};
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int t = first + u * STEP + slot;
                if (holds && t < count) load_once<16>(words[u], k_cache + cache.offset(start + t) + part * VECTOR);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                unsigned pairs[VECTOR / 2];
                to_pairs<VECTOR>(pairs, words[u]);
                float dot = 0.0f;
#pragma unroll
                for (int i = 0; i < VECTOR / 2; i++)
                    dot += mine[2 * i] * low_to_float(pairs[i]) + mine[2 * i + 1] * high_to_float(pairs[i]);
                dot = warp_sum<SPAN>(dot);
                const int t = first + u * STEP + slot;
                if (part == 0 && t < count) scores[t] = dot;
            }
        }
        __syncthreads();  // all scores are there
        float weight;
        const float shrink = softmax.take(thread < count ? scores[thread] : MINUS_INFINITY, scratch, weight);
        scores[thread] = weight;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sums[i] *= shrink;
        for (int first = warp * PER_WARP + slot; first < count; first += UNROLL * STEP) {
            unsigned words[UNROLL][4] = {};
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int t = first + u * STEP;
                if (holds && t < count) load_once<16>(words[u], v_cache + cache.offset(start + t) + part * VECTOR);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int t = first + u * STEP;
                const float factor = t < count ? scores[t] : 0.0f;
                unsigned pairs[VECTOR / 2];
                to_pairs<VECTOR>(pairs, words[u]);
#pragma unroll
                for (int i = 0; i < VECTOR / 2; i++) {
                    sums[2 * i] += factor * low_to_float(pairs[i]);
                    sums[2 * i + 1] += factor * high_to_float(pairs[i]);
                }
            }
        }
        // No barrier: a warp's next scores overwrite weights that it alone has read, and its lanes have met in between.
    }

    // The tokens of a warp's slots together, then those of the warps.
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
#pragma unroll
        for (int lanes = SPAN; lanes < 32; lanes *= 2) sums[i] += __shfl_xor_sync(ALL_LANES, sums[i], lanes);
        if (slot == 0 && holds) warp_sums[warp * HEAD_SIZE + part * VECTOR + i] = sums[i];
    }
    __syncthreads();
    for (int d = thread; d < HEAD_SIZE; d += SCORE_TILE) {
        float sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += warp_sums[w * HEAD_SIZE + d];
        out[row + d] = to_element(tokens > 0 ? sum / softmax.sum * v_scale : 0.0f);
    }
}
