// The functions of ../device.cuh for a CPU, and a runner of CUDA blocks: the kernels' sources compile unchanged as
// C++17.
//
// A block runs on one OS thread, each of its CUDA threads as a fiber that yields where it has to wait for others:
// __syncthreads, __syncwarp, shuffles and the warp-wide matrix instructions. Nothing runs in lockstep, so code that
// forgot a barrier reads what was not yet written or is already gone, and in one of several orders of threads (see
// run_block) a test sees it. Shared memory is allocated with exactly the requested size and filled with NaN before
// every block; asynchronous copies take place at once in some orders, in others only when they are waited for. Threads
// that wait for one another in vain are an error, not a hang.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define DEVICE inline
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cpu::block.shared)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

#define ALL_LANES 0xffffffffu
#define MINUS_INFINITY (-__builtin_huge_valf())

namespace cpu {

constexpr int WARP_SIZE = 32;
constexpr std::size_t STACK_BYTES = 128 * 1024;

enum class State { READY, AT_BARRIER, IN_WARP, DONE };

// What a lane shows the others of its warp; two of them in turns, so that nobody overwrites what a slower lane still
// has to read.
struct Message {
    unsigned words[6];
};

struct PendingCopy {
    void* to;
    const void* from;
    int group;
};

struct Fiber {
    char* stack = nullptr;
    State state = State::READY;
    dim3 thread;
    int index = 0;
    unsigned mask = 0;  // lanes that take part in the exchange this fiber waits for
    int exchanges = 0;  // how many there were: says which of the two messages is current
    Message messages[2];
    std::vector<PendingCopy> copies;
    int copy_groups = 0;
#if defined(__x86_64__)
    void* saved = nullptr;
#else
    ucontext_t context;
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
#endif
};

struct Block {
    std::vector<Fiber> fibers;
    Fiber* current = nullptr;
    unsigned char* shared = nullptr;
    dim3 grid, size, index;
    const void* kernel = nullptr;
    void (*run)(const void*) = nullptr;
    std::string error;
    bool copies_at_once = false;  // asynchronous copies: when asked for, or as late as when waited for
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_bytes = 0;
#endif
};

inline Block block;

#if defined(__x86_64__)
// Saves the registers that a call must keep, swaps the stack pointers, restores the other side's.
extern "C" void cpu_switch_stack(void** save, void* to);
asm(R"(
    .text
    .weak cpu_switch_stack
    .hidden cpu_switch_stack
    .type cpu_switch_stack, @function
cpu_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cpu_switch_stack, .-cpu_switch_stack
)");
#endif

inline void to_scheduler(bool for_good) {
    Fiber& fiber = *block.current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, block.scheduler_stack,
                                   block.scheduler_stack_bytes);
#else
    (void)for_good;
#endif
#if defined(__x86_64__)
    cpu_switch_stack(&fiber.saved, block.scheduler);
#else
    swapcontext(&fiber.context, &block.scheduler);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

inline void to_fiber(Fiber& fiber) {
    block.current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&block.fake_stack, fiber.stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
    cpu_switch_stack(&block.scheduler, fiber.saved);
#else
    swapcontext(&block.scheduler, &fiber.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(block.fake_stack, nullptr, nullptr);
#endif
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
    block.run(block.kernel);
    block.current->state = State::DONE;
    to_scheduler(true);
}

inline void prepare(Fiber& fiber) {
    if (fiber.stack == nullptr) fiber.stack = static_cast<char*>(std::malloc(STACK_BYTES));
#if defined(__x86_64__)
    auto* top =
        reinterpret_cast<void**>((reinterpret_cast<std::uintptr_t>(fiber.stack) + STACK_BYTES) & ~std::uintptr_t{15});
    *--top = nullptr;  // where fiber_main would return to: it does not. Also aligns the stack as at a function's entry.
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.saved = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = &block.scheduler;
    makecontext(&fiber.context, &fiber_main, 0);
#endif
}

inline void wait(State state) {
    block.current->state = state;
    to_scheduler(false);
}

// Shows `message` to the other lanes of `mask` and waits for theirs; `of(lane)` then reads them.
inline void exchange(unsigned mask, const Message& message) {
    Fiber& fiber = *block.current;
    fiber.exchanges++;
    fiber.messages[fiber.exchanges & 1] = message;
    fiber.mask = mask;
    wait(State::IN_WARP);
}

inline int lane() { return block.current->index % WARP_SIZE; }

inline const Message& of(int other) {
    const Fiber& fiber = *block.current;
    if (!(fiber.mask >> other & 1u)) block.error = "a lane was read that takes no part in the exchange";
    const Fiber& source = block.fibers[fiber.index / WARP_SIZE * WARP_SIZE + other];
    return source.messages[fiber.exchanges & 1];
}

// Lets the lanes of a warp go on whose whole mask has arrived. Lanes of one exchange must name the same mask.
inline bool release_warp(int first, int last) {
    bool any = false;
    for (int i = first; i < last; i++) {
        if (block.fibers[i].state != State::IN_WARP) continue;
        unsigned mask = block.fibers[i].mask, here = 0;
        for (int k = first; k < last; k++)
            if (block.fibers[k].state == State::IN_WARP && block.fibers[k].mask == mask &&
                block.fibers[k].exchanges == block.fibers[i].exchanges)
                here |= 1u << (k - first);
        if (here != mask) continue;
        for (int k = first; k < last; k++)
            if (here >> (k - first) & 1u) block.fibers[k].state = State::READY;
        any = true;
    }
    return any;
}

inline void shuffle(int* order, int count, std::uint64_t& random) {
    for (int i = count - 1; i > 0; i--) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const int other = static_cast<int>((random >> 33) % (i + 1)), held = order[i];
        order[i] = order[other];
        order[other] = held;
    }
}

// Runs the threads of warp `warp` that can run, in order, backwards or shuffled. False if there are none.
inline bool run_warp(int warp, int order_seed, std::uint64_t& random) {
    int lanes[WARP_SIZE];
    bool moved = false;
    for (int i = 0; i < WARP_SIZE; i++) lanes[i] = order_seed == 1 ? WARP_SIZE - 1 - i : i;
    if (order_seed > 1) shuffle(lanes, WARP_SIZE, random);
    for (int i = 0; i < WARP_SIZE; i++) {
        Fiber& fiber = block.fibers[warp * WARP_SIZE + lanes[i]];
        if (fiber.state != State::READY) continue;
        to_fiber(fiber);
        moved = true;
    }
    return release_warp(warp * WARP_SIZE, (warp + 1) * WARP_SIZE) || moved;
}

// order_seed: 0 = warps side by side, from one exchange to the next, lanes in order; 1 = the last warp as far as it
// comes, then the one before it, lanes backwards; more = likewise, warps and lanes shuffled anew after each barrier.
inline void run_block(int threads, int order_seed) {
    if (static_cast<int>(block.fibers.size()) < threads) block.fibers.resize(threads);
    const int warps = threads / WARP_SIZE;
    int order[32];
    for (int i = 0; i < warps; i++) order[i] = order_seed == 1 ? warps - 1 - i : i;
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = block.fibers[i];
        fiber.state = State::READY;
        fiber.index = i;
        fiber.thread = {i % block.size.x, i / block.size.x % block.size.y, i / (block.size.x * block.size.y)};
        fiber.exchanges = 0;
        fiber.copies.clear();
        fiber.copy_groups = 0;
        prepare(fiber);
    }
    block.copies_at_once = order_seed % 2 == 1;
    std::uint64_t random = order_seed * 1000003u + block.index.x * 7919u + block.index.y * 104729u + block.index.z;
    if (order_seed > 1) shuffle(order, warps, random);
    while (block.error.empty()) {
        bool moved = false;
        for (int i = 0; i < warps && !(moved && order_seed > 0); i++) moved |= run_warp(order[i], order_seed, random);
        if (moved) continue;
        int done = 0, at_barrier = 0;
        for (int i = 0; i < threads; i++) {
            done += block.fibers[i].state == State::DONE;
            at_barrier += block.fibers[i].state == State::AT_BARRIER;
        }
        if (done == threads) return;
        if (at_barrier == threads) {
            for (int i = 0; i < threads; i++) block.fibers[i].state = State::READY;
            if (order_seed > 1) shuffle(order, warps, random);
        } else if (at_barrier > 0 && at_barrier + done == threads) {
            block.error = "__syncthreads was reached by some threads of a block after others had returned";
        } else {
            block.error = "threads wait for one another in vain: a barrier or an exchange that not all of them reach";
        }
    }
}

template <class... Parameters>
struct BoundKernel {
    void (*kernel)(Parameters...);
    void** arguments;

    template <std::size_t... I>
    void call(std::index_sequence<I...>) const {
        kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...);
    }
    static void run(const void* self) {
        static_cast<const BoundKernel*>(self)->call(std::index_sequence_for<Parameters...>{});
    }
};

// All blocks one after another; `order_seed` 1 also takes the blocks backwards.
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const unsigned* grid, const unsigned* size, unsigned shared_bytes,
                   int order_seed, void** arguments) {
    BoundKernel<Parameters...> bound{kernel, arguments};
    block.kernel = &bound;
    block.run = &BoundKernel<Parameters...>::run;
    block.grid = {grid[0], grid[1], grid[2]};
    block.size = {size[0], size[1], size[2]};
    block.error.clear();
    const unsigned threads = size[0] * size[1] * size[2];
    if (threads % WARP_SIZE || threads > 1024) return "a block must have whole warps and at most 1024 threads";
    block.shared = static_cast<unsigned char*>(std::malloc(shared_bytes));
    const std::uint64_t blocks = std::uint64_t{grid[0]} * grid[1] * grid[2];
    for (std::uint64_t n = 0; n < blocks && block.error.empty(); n++) {
        const std::uint64_t id = order_seed == 1 ? blocks - 1 - n : n;
        block.index = {unsigned(id % grid[0]), unsigned(id / grid[0] % grid[1]), unsigned(id / grid[0] / grid[1])};
        if (shared_bytes) std::memset(block.shared, 0xff, shared_bytes);
        run_block(static_cast<int>(threads), order_seed);
    }
    std::free(block.shared);
    return block.error.empty() ? nullptr : block.error.c_str();
}

}  // namespace cpu

// Makes `name` callable from outside as cpu_launch_<name>(grid, block, shared_bytes, order_seed, arguments); null or
// what went wrong.
#define CPU_KERNEL(name) CPU_KERNEL_AS(name, name)
#define CPU_KERNEL_AS(name, kernel)                                                                             \
    extern "C" const char* cpu_launch_##name(const unsigned* grid, const unsigned* size, unsigned shared_bytes, \
                                             int order_seed, void** arguments) {                                \
        return cpu::launch(kernel, grid, size, shared_bytes, order_seed, arguments);                            \
    }

#define threadIdx (cpu::block.current->thread)
#define blockIdx (cpu::block.index)
#define blockDim (cpu::block.size)
#define gridDim (cpu::block.grid)

inline void __syncthreads() { cpu::wait(cpu::State::AT_BARRIER); }
inline void __syncwarp(unsigned mask = ALL_LANES) { cpu::exchange(mask, {}); }

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    static_assert(sizeof(T) == 4, "one register");
    cpu::Message message{};
    std::memcpy(message.words, &value, 4);
    cpu::exchange(mask, message);
    std::memcpy(&value, cpu::of(cpu::lane() ^ lanes).words, 4);
    return value;
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4, "one register");
    cpu::Message message{};
    std::memcpy(message.words, &value, 4);
    cpu::exchange(mask, message);
    std::memcpy(&value, cpu::of(source % cpu::WARP_SIZE).words, 4);
    return value;
}

// Blocks run one after another, and so do the threads of a block.
inline void __threadfence() {}
inline int atomicAdd(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::fmaxf;

DEVICE unsigned float_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float bits_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

DEVICE float half_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return bits_float((bits & 0x8000u) << 16 | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return bits_float((bits & 0x8000u) << 16 | (exponent + 112u) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return bits & 0x8000u ? -magnitude : magnitude;
}

// Rounds to nearest, ties to even, as cvt.rn does.
DEVICE unsigned short float_to_half(float value) {
    const unsigned bits = float_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fffu;   // NaN
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
    if (magnitude < 0x38800000u)                          // below 2^-14: a multiple of 2^-24
        return sign | static_cast<unsigned short>(std::nearbyint(bits_float(magnitude) * 0x1p24f));
    const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return sign | static_cast<unsigned short>((rounded - 0x38000000u) >> 13);
}

DEVICE float bfloat16_to_float(unsigned short bits) { return bits_float(static_cast<unsigned>(bits) << 16); }

DEVICE unsigned short float_to_bfloat16(float value) {
    const unsigned bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE unsigned pack_halves(float low, float high) { return float_to_half(low) | unsigned{float_to_half(high)} << 16; }
DEVICE unsigned pack_bfloat16s(float low, float high) {
    return float_to_bfloat16(low) | unsigned{float_to_bfloat16(high)} << 16;
}
DEVICE unsigned multiply_halves(unsigned a, unsigned b) {
    return pack_halves(half_to_float(a & 0xffffu) * half_to_float(b & 0xffffu),
                       half_to_float(a >> 16) * half_to_float(b >> 16));
}
DEVICE unsigned multiply_bfloat16s(unsigned a, unsigned b) {
    return pack_bfloat16s(bfloat16_to_float(a & 0xffffu) * bfloat16_to_float(b & 0xffffu),
                          bfloat16_to_float(a >> 16) * bfloat16_to_float(b >> 16));
}
DEVICE float exp2_fast(float x) { return std::exp2(x); }

DEVICE unsigned pick_bytes(unsigned low, unsigned high, unsigned selector) {
    const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
    return result;
}

template <int BYTES>
DEVICE void load_once(unsigned* words, const void* address) {
    if (reinterpret_cast<std::uintptr_t>(address) % BYTES)
        cpu::block.error = "a vector load from an address that it does not divide";
    if (BYTES < 4) words[0] = 0;
    std::memcpy(words, address, BYTES);
}

DEVICE float load_from_others(const float* address) { return *address; }

DEVICE void load_four_from_others(float (&values)[4], const float* address) {
    load_once<16>(reinterpret_cast<unsigned*>(values), address);
}

namespace cpu {

template <float (*CONVERT)(unsigned short)>
void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    exchange(ALL_LANES, {{a[0], a[1], a[2], a[3], b[0], b[1]}});
    const int g = lane() / 4, j = lane() % 4;
    for (int part = 0; part < 4; part++) {
        const int row_half = part / 2, column = 2 * j + part % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; k++) {
            const unsigned left = of(4 * g + k % 8 / 2).words[row_half + 2 * (k / 8)];
            const unsigned right = of(4 * column + k % 8 / 2).words[4 + k / 8];
            const int shift = 16 * (k % 2);
            sum += CONVERT(left >> shift & 0xffffu) * CONVERT(right >> shift & 0xffffu);
        }
        d[part] += sum;
    }
}

}  // namespace cpu

DEVICE void mma_halves(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cpu::mma<half_to_float>(d, a, b);
}
DEVICE void mma_bfloat16s(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cpu::mma<bfloat16_to_float>(d, a, b);
}

DEVICE unsigned transpose_8x8(unsigned pair) {
    cpu::exchange(ALL_LANES, {{pair}});
    const int row = cpu::lane() / 4, j = cpu::lane() % 4, shift = 16 * (row % 2);
    const unsigned low = cpu::of(8 * j + row / 2).words[0] >> shift & 0xffffu;
    const unsigned high = cpu::of(8 * j + 4 + row / 2).words[0] >> shift & 0xffffu;
    return low | high << 16;
}

DEVICE void copy_async_16(void* shared, const void* global) {
    if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % 16)
        cpu::block.error = "an asynchronous copy of 16 bytes from or to an address that 16 does not divide";
    cpu::Fiber& fiber = *cpu::block.current;
    if (cpu::block.copies_at_once)
        std::memcpy(shared, global, 16);
    else
        fiber.copies.push_back({shared, global, fiber.copy_groups});
}

DEVICE void copy_async_commit() { cpu::block.current->copy_groups++; }

template <int PENDING>
DEVICE void copy_async_wait() {
    cpu::Fiber& fiber = *cpu::block.current;
    std::vector<cpu::PendingCopy> left;
    for (const cpu::PendingCopy& copy : fiber.copies) {
        if (copy.group < fiber.copy_groups - PENDING)
            std::memcpy(copy.to, copy.from, 16);
        else
            left.push_back(copy);
    }
    fiber.copies.swap(left);
}
