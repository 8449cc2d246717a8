// Attention of eight query rows (or several times eight) over 16 tokens at a time on a warp's tensor cores, straight
// from where K and V lie: the inner loop of paged_attention_gqa, paged_attention_split_kv, contiguous_attention and
// paged_prefill.
//
// Both products are computed transposed: tokens and dimensions are the instruction's 16 rows, query rows its 8 columns.
//     S^T [16 tokens x 8 rows]  = K [16 x HEAD_SIZE]  Q^T [HEAD_SIZE x 8]
//     O^T [HEAD_SIZE x 8 rows] += V^T [HEAD_SIZE x 16] P^T [16 x 8]
// A group of up to eight query heads that share a KV head is served by one read of K and V. A lane's sums, maxima and
// results are those of the same two query rows throughout, so nothing is exchanged but the maxima, and P once, by an
// 8 x 8 transposition.
//
// Which dimension is which k of the instruction does not matter as long as both operands agree: a lane therefore loads
// 16 neighbouring bytes of a row and takes them as fragments of consecutive instructions. With g = lane / 4, j = lane %
// 4, lane (g, j) holds
//     of K: tokens g and g + 8, of every chunk c the K_VECTOR elements from c * 4 * K_VECTOR + j * K_VECTOR on;
//     of V: tokens 2j, 2j + 1, 2j + 8, 2j + 9, of every chunk c the V_VECTOR elements from c * 8 * V_VECTOR + g *
//           V_VECTOR on; pairs of one dimension of two tokens are then made by picking bytes.
#pragma once
#include "paged_kv.cuh"
#include "reduce.cuh"

namespace tile {

constexpr int TOKENS = 16;
constexpr int ROWS = 8;  // query rows per column block of the instruction

// The widest vector (elements, at most 16 bytes) of which `lanes` side by side divide a row.
DEVICE constexpr int widest(int lanes, int bytes_per_element) {
    int vector = 16 / bytes_per_element;
    while (HEAD_SIZE % (lanes * vector)) vector /= 2;
    return vector;
}
constexpr int K_VECTOR = widest(4, sizeof(KvElement));
constexpr int V_VECTOR = widest(8, sizeof(KvElement));
constexpr int K_CHUNKS = HEAD_SIZE / (4 * K_VECTOR);
constexpr int V_CHUNKS = HEAD_SIZE / (8 * V_VECTOR);
constexpr int K_BYTES = K_VECTOR * sizeof(KvElement);
constexpr int V_BYTES = V_VECTOR * sizeof(KvElement);
constexpr int K_WORDS = (K_BYTES + 3) / 4;
constexpr int V_WORDS = (V_BYTES + 3) / 4;
constexpr int STEPS = HEAD_SIZE / 16;  // instructions per product
constexpr int K_STEPS = K_VECTOR / 4;  // of them, per chunk of K
constexpr int V_STEPS = V_VECTOR / 2;

struct Keys {
    unsigned words[K_CHUNKS][2][K_WORDS];
};
struct Values {
    unsigned words[V_CHUNKS][4][V_WORDS];
};

template <int COLUMNS>
struct Queries {
    unsigned pairs[COLUMNS][STEPS][2];
};

// Of query rows 2j and 2j + 1 of each column block: results so far (of dimensions as V is held), largest score, this
// lane's share of the sum.
template <int COLUMNS>
struct Results {
    float out[COLUMNS][STEPS][4] = {};
    float largest[COLUMNS][2];
    float sum[COLUMNS][2] = {};

    DEVICE Results() {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) largest[c][0] = largest[c][1] = MINUS_INFINITY;
    }
};

DEVICE int lane_group() { return threadIdx.x % 32 / 4; }
DEVICE int lane_in_group() { return threadIdx.x % 4; }

template <int BYTES, bool SHARED>
DEVICE void load(unsigned* words, const void* address) {
    if constexpr (!SHARED) {
        load_once<BYTES>(words, address);
    } else if constexpr (BYTES == 16) {
        const uint4 four = *static_cast<const uint4*>(address);
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    } else if constexpr (BYTES == 2) {
        words[0] = *static_cast<const unsigned short*>(address);
    } else {
#pragma unroll
        for (int i = 0; i < BYTES / 4; i++) words[i] = static_cast<const unsigned*>(address)[i];
    }
}

// Keys of 16 tokens from `first` on, `stride` elements apart. Tokens past `last` (an index from 0) are not read: `last`
// is, in their place.
template <bool SHARED = false>
DEVICE void load_keys(Keys& keys, const KvElement* first, int stride, int last) {
    const int g = lane_group(), j = lane_in_group();
    const KvElement* low = first + min(g, last) * stride + j * K_VECTOR;
    const KvElement* high = first + min(g + 8, last) * stride + j * K_VECTOR;
#pragma unroll
    for (int c = 0; c < K_CHUNKS; c++) {
        load<K_BYTES, SHARED>(keys.words[c][0], low + c * 4 * K_VECTOR);
        load<K_BYTES, SHARED>(keys.words[c][1], high + c * 4 * K_VECTOR);
    }
}

template <bool SHARED = false>
DEVICE void load_values(Values& values, const KvElement* first, int stride, int last) {
    const int g = lane_group(), j = lane_in_group();
#pragma unroll
    for (int c = 0; c < V_CHUNKS; c++) {
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const int token = min(2 * j + t % 2 + t / 2 * 8, last);
            load<V_BYTES, SHARED>(values.words[c][t], first + token * stride + c * 8 * V_VECTOR + g * V_VECTOR);
        }
    }
}

// The lane's part of query row g of column block `column`; zeros where there is no such row.
template <int COLUMNS>
DEVICE void load_query(Queries<COLUMNS>& queries, int column, const Element* row, bool exists) {
    const int j = lane_in_group();
#pragma unroll
    for (int c = 0; c < K_CHUNKS; c++) {
#pragma unroll
        for (int s = 0; s < K_STEPS; s++) {
            unsigned words[2] = {0u, 0u};
            if (exists) load_once<8>(words, row + c * 4 * K_VECTOR + j * K_VECTOR + 4 * s);
            queries.pairs[column][c * K_STEPS + s][0] = words[0];
            queries.pairs[column][c * K_STEPS + s][1] = words[1];
        }
    }
}

// Scores of 16 tokens: [column block][token g: rows 2j, 2j + 1; token g + 8: rows 2j, 2j + 1].
template <int COLUMNS>
DEVICE void multiply_keys(float (&scores)[COLUMNS][4], const Keys& keys, const Queries<COLUMNS>& queries) {
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[column][i] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < K_CHUNKS; c++) {
        unsigned low[K_VECTOR / 2], high[K_VECTOR / 2];
        to_pairs<K_VECTOR>(low, keys.words[c][0]);
        to_pairs<K_VECTOR>(high, keys.words[c][1]);
#pragma unroll
        for (int s = 0; s < K_STEPS; s++) {
            const unsigned a[4] = {low[2 * s], high[2 * s], low[2 * s + 1], high[2 * s + 1]};
#pragma unroll
            for (int column = 0; column < COLUMNS; column++)
                mma(scores[column], a, queries.pairs[column][c * K_STEPS + s]);
        }
    }
}

// Scores become weights relative to the largest so far, packed as the second product needs them; what was summed before
// shrinks. `visible(token, row)`: whether query row `row` of its column block sees `token` (0 ... 15) of this tile.
// Every row sees at least one token of the first tile that a warp takes.
template <int COLUMNS, class Visible>
DEVICE void take_scores(unsigned (&weights)[COLUMNS][2], float (&scores)[COLUMNS][4], Results<COLUMNS>& results,
                        float scale, Visible visible) {
    const int g = lane_group(), j = lane_in_group();
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        float (&score)[4] = scores[column];
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[i] = visible(g + i / 2 * 8, column * ROWS + 2 * j + i % 2) ? score[i] * scale : MINUS_INFINITY;
        float shrink[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float now = fmaxf(score[r], score[r + 2]);
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, lanes));
            now = fmaxf(now, results.largest[column][r]);
            shrink[r] = exp2_fast(results.largest[column][r] - now);
            results.largest[column][r] = now;
            score[r] = exp2_fast(score[r] - now);
            score[r + 2] = exp2_fast(score[r + 2] - now);
            results.sum[column][r] = results.sum[column][r] * shrink[r] + score[r] + score[r + 2];
        }
#pragma unroll
        for (int m = 0; m < STEPS; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) results.out[column][m][i] *= shrink[i % 2];
        }
        // From (token; two rows) to (row; two tokens).
        weights[column][0] = transpose_8x8(pack(score[0], score[1]));
        weights[column][1] = transpose_8x8(pack(score[2], score[3]));
    }
}

template <int COLUMNS>
DEVICE void multiply_values(Results<COLUMNS>& results, const Values& values, const unsigned (&weights)[COLUMNS][2]) {
#pragma unroll
    for (int c = 0; c < V_CHUNKS; c++) {
        unsigned pairs[4][V_VECTOR / 2];
#pragma unroll
        for (int t = 0; t < 4; t++) to_pairs<V_VECTOR>(pairs[t], values.words[c][t]);
#pragma unroll
        for (int s = 0; s < V_STEPS; s++) {
            // Rows g: the even elements of V, rows g + 8: the odd ones.
            const unsigned a[4] = {
                pick_bytes(pairs[0][s], pairs[1][s], 0x5410u), pick_bytes(pairs[0][s], pairs[1][s], 0x7632u),
                pick_bytes(pairs[2][s], pairs[3][s], 0x5410u), pick_bytes(pairs[2][s], pairs[3][s], 0x7632u)};
#pragma unroll
            for (int column = 0; column < COLUMNS; column++)
                mma(results.out[column][c * V_STEPS + s], a, weights[column]);
        }
    }
}

// The even element of the pair of dimensions that results.out[...][step][0 and 2] hold on this lane.
DEVICE int dimension(int step) { return step / V_STEPS * 8 * V_VECTOR + lane_group() * V_VECTOR + step % V_STEPS * 2; }

// Each lane has summed the weights of its own tokens: the whole sum, on every lane of a column.
template <int COLUMNS>
DEVICE void finish_sums(Results<COLUMNS>& results) {
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                results.sum[column][r] += __shfl_xor_sync(ALL_LANES, results.sum[column][r], lanes);
        }
    }
}

}  // namespace tile
