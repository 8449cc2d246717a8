// Softmax over tiles of a sequence of any length (online softmax, Milakov & Gimelshein 2018): only the largest score so
// far and the sum of the weights relative to it are kept, so there is no array of scores that a long sequence could
// outgrow.
#pragma once
#include "reduce.cuh"

// Tokens per tile of the rungs below the matrix instructions: one per thread of a block.
constexpr int SCORE_TILE = 128;

struct RunningSoftmax {
    float largest = MINUS_INFINITY;
    float sum = 0.0f;

    // Takes in one score of each thread (in units of log2; minus infinity where the thread has none; at least one
    // thread has one). `weight` becomes this thread's weight; returned is the factor by which all that was summed
    // before has to shrink.
    DEVICE float take(float score, float* scratch, float& weight) {
        const float now = fmaxf(largest, block_max(score, scratch));
        const float shrink = exp2_fast(largest - now);
        weight = exp2_fast(score - now);
        sum = sum * shrink + block_sum(weight, scratch);
        largest = now;
        return shrink;
    }
};
