// Where a token's keys and values are.
//
// The cache is laid out as vLLM's FlashAttention backend has it (often called NHD): K and V are each
// [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_SIZE], innermost last. A sequence's row of block_tables
// [num_seqs, max_blocks] lists its physical blocks in order; max_blocks, the table's width, is the stride of rows, and
// what the entries past the sequence's own blocks name is never read. Offsets are 64-bit: caches of many GB have more
// than 2^31 elements.
#pragma once
#include "numbers.cuh"

#ifndef HEAD_SIZE
#error "compile with -DHEAD_SIZE=64, 80, 96, 128 or 256"
#endif
#ifndef BLOCK_SIZE
#error "compile with -DBLOCK_SIZE=16 or 32"
#endif
static_assert(BLOCK_SIZE % 16 == 0, "a matrix instruction takes 16 tokens, all of one block");
static_assert(HEAD_SIZE % 16 == 0 && HEAD_SIZE <= 256, "what the fragments below are made for");

// 1/sqrt(HEAD_SIZE), times log2(e): powers of two are cheaper than powers of e.
DEVICE float score_scale(float k_scale) { return rsqrtf(static_cast<float>(HEAD_SIZE)) * k_scale * LOG2_E; }

struct PagedCache {
    const int* blocks;  // the sequence's row of the block table
    int max_blocks;
    long long block_stride;  // elements from one block to the next
    int token_stride;        // elements from one token to the next: num_kv_heads * HEAD_SIZE
    int head_offset;

    DEVICE PagedCache(const int* block_tables, int seq, int max_blocks, long long block_stride, int num_kv_heads,
                      int kv_head)
        : blocks(block_tables + static_cast<long long>(seq) * max_blocks),
          max_blocks(max_blocks),
          block_stride(block_stride),
          token_stride(num_kv_heads * HEAD_SIZE),
          head_offset(kv_head * HEAD_SIZE) {}

    // The block of `token`, which may lie past the sequence's end: the number is then of no use and must not be used.
    DEVICE int look_up(int token) const {
        const int entry = token / BLOCK_SIZE;
        return entry < max_blocks ? blocks[entry] : 0;
    }

    // Elements from the start of K (or V) to the first element of `token`, which is in `block`.
    DEVICE long long offset_in(int block, int token) const {
        return block * block_stride + (token % BLOCK_SIZE) * token_stride + head_offset;
    }

    DEVICE long long offset(int token) const { return offset_in(blocks[token / BLOCK_SIZE], token); }
};

// The twin without paging: K and V are [num_seqs, longest, num_kv_heads, HEAD_SIZE].
struct ContiguousCache {
    long long start;
    int token_stride;

    DEVICE ContiguousCache(int seq, long long seq_stride, int num_kv_heads, int kv_head)
        : start(seq * seq_stride + kv_head * HEAD_SIZE), token_stride(num_kv_heads * HEAD_SIZE) {}

    DEVICE int look_up(int) const { return 0; }
    DEVICE long long offset_in(int, int token) const { return start + static_cast<long long>(token) * token_stride; }
};
