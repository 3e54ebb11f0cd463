// CUDA threads as fibers: one fiber a CUDA thread, one OS thread a running block.
//
// A fiber runs until it waits (barrier, warp operation) or ends; then the next one of its block runs. So a block without
// barriers is a plain loop over its threads, and everything a block does is deterministic for a given order of threads.
// This header holds what kernels inline; threads.cpp holds the rest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "results.hpp"
#include "vector_types.hpp"

namespace emulator {

constexpr unsigned warp_size = 32;
constexpr unsigned max_threads_per_block = 1024;
constexpr unsigned lane_slot_bytes = 64;  // what a lane can bring to a warp operation
constexpr unsigned max_shared_bytes = 228 << 10;  // more than any device that can be emulated gives a block
constexpr unsigned dynamic_shared_alignment = 128;
constexpr unsigned page_bytes = 4096;
constexpr unsigned stack_bytes = 64 << 10;  // of a fiber, its lowest page without access

struct Block;
struct Warp;
struct AsyncCopies;  // tensor_core.hpp: the cp.async copies a thread has in flight
struct Launch;       // launch.hpp

// Where a suspended fiber goes on. All other registers are saved by the compiler, see switch_context.
struct Context {
  void *stack_pointer, *instruction, *frame_pointer;
};

enum class State : uint8_t { fresh, started, ended };

// One CUDA thread.
struct Thread {
  Context context;
  uint3 index;      // threadIdx
  uint32_t linear;  // its number in the block, x fastest
  uint32_t lane;
  uint32_t slot;    // its place in the running order: threads[slot] is this thread
  Warp* warp;
  Block* block;
  const volatile uint32_t* wait_counter;  // it can run once *wait_counter != wait_value
  uint32_t wait_value;
  State state;
  const char* waits_at;  // for deadlock reports
  AsyncCopies* copies;
};

// Lanes of a warp that meet in a warp operation; lanes with different masks meet in different rendezvous.
struct Rendezvous {
  uint32_t mask, arrived, generation, readers;
  const char* operation;
  alignas(64) unsigned char lanes[2][warp_size][lane_slot_bytes];
};

struct Warp {
  uint32_t alive;                   // lanes that exist and have not ended
  uint32_t first_slot, slot_count;  // its lanes are neighbours in the running order
  Rendezvous rendezvous[4];
};

// A barrier that counts who has arrived; those that wait see the generation change.
struct Barrier {
  uint32_t arrived, generation;
  const char* site;
};

// The block that an OS thread runs at present, with room for its threads.
struct Block {
  uint3 index;     // blockIdx
  dim3 dimension;  // blockDim
  dim3 grid;       // gridDim
  const Launch* launch;
  uint32_t thread_count, warp_count, started, live;
  Barrier barrier;             // __syncthreads()
  Barrier group_barriers[15];  // group_barrier()
  unsigned char* dynamic_shared;      // ends, but for alignment, where the memory with access ends
  unsigned char* dynamic_shared_end;  // a page without access: going too far is a fault
  Context scheduler;  // where run_block goes on when the block has ended or failed
  unsigned char* stacks;
  uint32_t stacks_used, stacks_guarded;
  int fault_signal;  // set by the signal handler
  void* fault_address;
  void* fault_instruction;
  bool failed;
  Thread threads[max_threads_per_block];
  Warp warps[max_threads_per_block / warp_size];
};

// The CUDA thread that this OS thread runs, null outside kernels. Initial-exec keeps the access to two instructions; a
// library that is opened at run time may have a few bytes of such storage.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

// Reports an error of the current CUDA thread, naming kernel, block and thread, and gives up its block: the launch
// returns `code`.
[[noreturn]] void fail(CUresult code, const char* format, ...) __attribute__((format(printf, 2, 3)));

[[noreturn]] void fail_divergent_barrier(const char* site, const char* other);
[[noreturn]] void fail_lane_not_in_mask(const char* operation, uint32_t mask);
[[noreturn]] void fail_lane_missing(const char* operation, uint32_t mask, uint32_t alive);

// Gives the processor to another fiber that can run, or reports a deadlock.
void switch_to_any(Thread* self);

// Suspends one fiber and goes on with another. Every register is declared clobbered, so the compiler saves just those
// that are live here; the frame pointer cannot be declared and is kept by hand.
__attribute__((always_inline)) inline void switch_context(Context* from, Context* to) {
  asm volatile(
      "movq %%rsp, 0(%0)\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rax, 8(%0)\n\t"
      "movq %%rbp, 16(%0)\n\t"
      "movq 0(%1), %%rsp\n\t"
      "movq 16(%1), %%rbp\n\t"
      "jmpq *8(%1)\n\t"
      ".p2align 4\n"
      "1:\n\t"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
        "xmm14", "xmm15"
#ifdef __AVX512F__
        , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",
        "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#endif
  );
}

inline bool can_run(const Thread& thread) {
  return thread.state == State::started && *thread.wait_counter != thread.wait_value;
}

// Waits until *counter changes; `next` is the slot that should run meanwhile.
__attribute__((always_inline)) inline void wait_for_change(Thread* self, const volatile uint32_t* counter,
                                                           uint32_t next, const char* waits_at) {
  self->wait_counter = counter;
  self->wait_value = *counter;
  self->waits_at = waits_at;
  Thread* successor = &self->block->threads[next];
  if (__builtin_expect(can_run(*successor), 1)) {
    current = successor;
    switch_context(&self->context, &successor->context);
  } else {
    switch_to_any(self);
  }
}

// So many threads have to come, and to the same line of the source.
__attribute__((always_inline)) inline void wait_at(Barrier& barrier, uint32_t threads, const char* site) {
  Thread* self = current;
  if (barrier.arrived == 0) barrier.site = site;
  else if (__builtin_expect(barrier.site != site, 0) && strcmp(barrier.site, site) != 0)
    fail_divergent_barrier(site, barrier.site);
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.generation = barrier.generation + 1;
    return;
  }
  uint32_t next = self->slot + 1;
  wait_for_change(self, &barrier.generation, next == self->block->thread_count ? 0 : next, site);
}

// __syncthreads(): every thread of the block.
__attribute__((always_inline)) inline void barrier(const char* site) {
  Block* block = current->block;
  wait_at(block->barrier, block->thread_count, site);
}

// Of a one-dimensional block, the threads from `group * threads` on.
inline void group_barrier(uint32_t group, uint32_t threads) {
  Block* block = current->block;
  const char* site = "group_barrier";
  if (group >= sizeof block->group_barriers / sizeof *block->group_barriers || threads % warp_size != 0)
    fail(CUDA_ERROR_LAUNCH_FAILED, "group_barrier: group %u of %u threads", group, threads);
  if (current->index.x / threads != group)
    fail(CUDA_ERROR_LAUNCH_FAILED, "group_barrier: this thread is not of group %u of %u threads", group, threads);
  wait_at(block->group_barriers[group], threads, site);
}

// The rendezvous of the lanes in `mask`: the one they have met in before, or a free one.
inline Rendezvous* find_rendezvous(Warp& warp, uint32_t mask, const char* operation) {
  for (Rendezvous& candidate : warp.rendezvous)
    if (candidate.mask == mask) return &candidate;
  for (Rendezvous& candidate : warp.rendezvous)
    if (candidate.arrived == 0 && candidate.readers == 0) {
      candidate.mask = mask;
      return &candidate;
    }
  fail(CUDA_ERROR_LAUNCH_FAILED, "%s: lanes of one warp wait with more than 4 different masks at once", operation);
}

// The lanes of `mask` meet: each brings `bytes` bytes; the last to come runs `combine` once over all lanes' bytes; then
// each lane runs `read` over them. Two sets of lane bytes suffice: a lane can enter the round after next only when all
// have entered the next one, and so have read this one.
template <class Combine, class Read>
__attribute__((always_inline)) inline void meet(const char* operation, uint32_t mask, const void* brought,
                                                size_t bytes, Combine combine, Read read) {
  Thread* self = current;
  Warp& warp = *self->warp;
  if (__builtin_expect(!(mask >> self->lane & 1), 0)) fail_lane_not_in_mask(operation, mask);
  if (__builtin_expect(mask & ~warp.alive, 0)) fail_lane_missing(operation, mask, warp.alive);
  Rendezvous* here = &warp.rendezvous[0];
  if (__builtin_expect(here->mask != mask, 0)) here = find_rendezvous(warp, mask, operation);
  if (here->arrived == 0) here->operation = operation;
  else if (__builtin_expect(here->operation != operation, 0) && strcmp(here->operation, operation) != 0)
    fail(CUDA_ERROR_LAUNCH_FAILED, "%s: another lane of its mask 0x%08x is at %s", operation, mask, here->operation);
  unsigned char(*lanes)[lane_slot_bytes] = here->lanes[here->generation & 1];
  memcpy(lanes[self->lane], brought, bytes);
  if (++here->arrived == static_cast<uint32_t>(__builtin_popcount(mask))) {
    combine(lanes);
    here->readers += here->arrived;
    here->arrived = 0;
    here->generation = here->generation + 1;
  } else {
    uint32_t next = self->slot + 1, end = warp.first_slot + warp.slot_count;
    wait_for_change(self, &here->generation, next == end ? warp.first_slot : next, operation);
  }
  read(lanes);
  --here->readers;
}

inline void combine_nothing(unsigned char (*)[lane_slot_bytes]) {}

}  // namespace emulator
