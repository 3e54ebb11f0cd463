// Starting, finding and ending the fibers of a block; what is said when they fail.
#include "threads.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <new>
#include <string>

#include "launch.hpp"
#include "tensor_core.hpp"

extern "C" void* __tls_get_addr(size_t module_and_offset[2]);

namespace emulator {

__thread Thread* current;

namespace {

constexpr unsigned char poison = 0xFF;  // NaN in every floating-point type

const uint32_t never_waits = 1;

// A stack whose lowest page stays unmapped, so that an overflow is a fault. Tops are skewed by some cache lines: at
// equal page offsets the stacks of a block would evict one another from the first-level cache.
void* new_stack(Block* block) {
  uint32_t number = block->stacks_used++;
  unsigned char* bottom = block->stacks + static_cast<size_t>(number) * stack_bytes;
  if (number == block->stacks_guarded) {
    mprotect(bottom, page_bytes, PROT_NONE);
    ++block->stacks_guarded;
  }
  return bottom + stack_bytes - 128 - number * 7 % 61 * 64;
}

Thread* begin_next_thread(Block* block) {
  Thread* thread = &block->threads[block->started++];
  thread->state = State::started;
  thread->wait_counter = &never_waits;
  thread->wait_value = 0;
  current = thread;
  return thread;
}

[[noreturn]] void run_threads();

void start_next_thread(Block* block, Context* from) {
  Thread* thread = begin_next_thread(block);
  // As after a call, which the compiler expects at a function's start: stack pointer 8 below a multiple of 16.
  thread->context = {static_cast<char*>(new_stack(block)) - 8, reinterpret_cast<void*>(run_threads), nullptr};
  switch_context(from, &thread->context);
}

Thread* find_runnable(Thread* after) {
  Block* block = after->block;
  for (uint32_t step = 1; step <= block->thread_count; ++step) {
    Thread* candidate = &block->threads[(after->slot + step) % block->thread_count];
    if (can_run(*candidate)) return candidate;
  }
  return nullptr;
}

// Says who waits where, and how many threads have ended.
[[noreturn]] void fail_deadlock(Block* block) {
  struct Place {
    uint32_t count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Place> places;
  for (uint32_t slot = 0; slot < block->thread_count; ++slot) {
    const Thread& thread = block->threads[slot];
    if (thread.state != State::started) continue;
    Place& place = places[thread.waits_at];
    ++place.count;
    if (place.first == nullptr || thread.linear < place.first->linear) place.first = &thread;
  }
  std::string text = "deadlock: ";
  for (auto& [site, place] : places) {
    char part[512];
    snprintf(part, sizeof part, "%u of %u threads wait at %s, the first is (%u,%u,%u); ", place.count,
             block->thread_count, site.c_str(), place.first->index.x, place.first->index.y, place.first->index.z);
    text += part;
  }
  fail(CUDA_ERROR_LAUNCH_TIMEOUT, "%s%u have ended", text.c_str(), block->thread_count - block->live);
}

// The body of a fiber: runs CUDA threads, one after another on the same stack as long as none of them waits.
[[noreturn]] void run_threads() {
  for (;;) {
    Block* block = current->block;
    block->launch->kernel->invoke(block->launch->arguments);
    Thread* self = current;
    self->state = State::ended;
    self->warp->alive &= ~(1u << self->lane);
    --block->live;
    if (block->started < block->thread_count) {
      begin_next_thread(block);
      continue;
    }
    Context abandoned;
    if (block->live == 0) {
      current = nullptr;
      switch_context(&abandoned, &block->scheduler);
    }
    Thread* next = find_runnable(self);
    if (next == nullptr) fail_deadlock(block);
    current = next;
    switch_context(&abandoned, &next->context);
  }
}

[[noreturn]] void give_up_block(Block* block) {
  block->failed = true;
  current = nullptr;
  Context abandoned;
  switch_context(&abandoned, &block->scheduler);
  __builtin_unreachable();
}

void poison_shared_memory(Block* block) {
  const Launch& launch = *block->launch;
  size_t dynamic = (launch.dynamic_shared + dynamic_shared_alignment - 1) / dynamic_shared_alignment * dynamic_shared_alignment;
  block->dynamic_shared = block->dynamic_shared_end - dynamic;
  memset(block->dynamic_shared, poison, dynamic);
  if (launch.static_shared.bytes > 0) {
    size_t place[2] = {launch.static_shared.tls_module, 0};
    memset(__tls_get_addr(place), poison, launch.static_shared.bytes);
  }
}

// The bytes between the end of the dynamic shared memory and the next multiple of its alignment.
void check_end_of_shared_memory(Block* block) {
  unsigned bytes = block->launch->dynamic_shared;
  for (unsigned char* at = block->dynamic_shared + bytes; at < block->dynamic_shared_end; ++at) {
    if (*at == poison) continue;
    char message[160];
    snprintf(message, sizeof message, "a write %zd bytes past the end of %u bytes of dynamic shared memory",
             at - block->dynamic_shared - bytes, bytes);
    fail_launch(block, nullptr, CUDA_ERROR_ILLEGAL_ADDRESS, message);
    return;
  }
}

void set_up_threads(Block* block, uint64_t number) {
  dim3 size = block->dimension;
  uint32_t count = size.x * size.y * size.z;
  block->thread_count = block->live = count;
  block->warp_count = (count + warp_size - 1) / warp_size;
  block->started = block->stacks_used = block->barrier.arrived = 0;
  for (Barrier& barrier : block->group_barriers) barrier.arrived = 0;
  block->failed = false;
  block->fault_signal = 0;
  uint16_t slots[max_threads_per_block];
  order_threads(block->launch->order, number, count, slots);
  for (uint32_t index = 0; index < block->warp_count; ++index) {
    Warp& warp = block->warps[index];
    warp.slot_count = std::min(warp_size, count - index * warp_size);
    warp.first_slot = *std::min_element(slots + index * warp_size, slots + index * warp_size + warp.slot_count);
    warp.alive = warp.slot_count == warp_size ? ~0u : (1u << warp.slot_count) - 1;
    for (Rendezvous& rendezvous : warp.rendezvous) rendezvous.arrived = rendezvous.readers = rendezvous.mask = 0;
    warp.rendezvous[0].mask = ~0u;
  }
  uint32_t linear = 0;
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x, ++linear) {
        Thread& thread = block->threads[slots[linear]];
        thread.index = {x, y, z};
        thread.linear = linear;
        thread.lane = linear % warp_size;
        thread.slot = slots[linear];
        thread.warp = &block->warps[linear / warp_size];
        thread.block = block;
        thread.state = State::fresh;
        if (thread.copies != nullptr) forget_copies(thread.copies);
      }
}

}  // namespace

void switch_to_any(Thread* self) {
  Block* block = self->block;
  if (block->started < block->thread_count) {
    start_next_thread(block, &self->context);
    return;
  }
  Thread* next = find_runnable(self);
  if (next == nullptr) fail_deadlock(block);
  if (next == self) return;
  current = next;
  switch_context(&self->context, &next->context);
}

Block* block_of_this_os_thread() {
  static __thread Block* block __attribute__((tls_model("initial-exec")));
  if (block != nullptr) return block;
  void* memory = mmap(nullptr, sizeof(Block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* stacks = mmap(nullptr, size_t{max_threads_per_block} * stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* shared = mmap(nullptr, max_shared_bytes + page_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || stacks == MAP_FAILED || shared == MAP_FAILED) {
    fprintf(stderr, "cuda emulator: no address space for a block's threads\n");
    abort();
  }
  block = new (memory) Block;  // anonymous memory is zero, which is what Block needs
  block->stacks = static_cast<unsigned char*>(stacks);
  block->dynamic_shared_end = static_cast<unsigned char*>(shared) + max_shared_bytes;
  mprotect(block->dynamic_shared_end, page_bytes, PROT_NONE);
  catch_faults_on_this_os_thread();
  return block;
}

void run_block(Block* block, uint64_t number) {
  set_up_threads(block, number);
  poison_shared_memory(block);
  start_next_thread(block, &block->scheduler);  // comes back when the block has ended or failed
  if (block->fault_signal != 0) {
    const Thread* thread = current;
    current = nullptr;
    report_fault(block, thread);
  } else if (!block->failed) {
    check_end_of_shared_memory(block);
  }
}

void fail_launch(Block* block, const Thread* thread, CUresult code, const char* message) {
  Launch* launch = const_cast<Launch*>(block->launch);
  int none = CUDA_SUCCESS;
  if (!launch->failure.compare_exchange_strong(none, code)) return;  // one line a launch: the first error
  char where[256];
  int length = snprintf(where, sizeof where, "kernel %s, block (%u,%u,%u)", launch->kernel->name, block->index.x,
                        block->index.y, block->index.z);
  if (thread != nullptr)
    snprintf(where + length, sizeof where - length, ", thread (%u,%u,%u)", thread->index.x, thread->index.y,
             thread->index.z);
  launch->failure_message = std::string(where) + ": " + message;
}

void fail(CUresult code, const char* format, ...) {
  char message[768];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  Block* block = current->block;
  fail_launch(block, current, code, message);
  give_up_block(block);
}

void fail_divergent_barrier(const char* site, const char* other) {
  fail(CUDA_ERROR_LAUNCH_FAILED, "divergent barrier: this thread is at %s, another one of its block at %s", site, other);
}

void fail_lane_not_in_mask(const char* operation, uint32_t mask) {
  fail(CUDA_ERROR_LAUNCH_FAILED, "%s: lane %u is not in its own mask 0x%08x", operation, current->lane, mask);
}

void fail_lane_missing(const char* operation, uint32_t mask, uint32_t alive) {
  unsigned lane = __builtin_ctz(mask & ~alive);
  bool exists = lane < current->warp->slot_count;
  fail(CUDA_ERROR_LAUNCH_FAILED, "%s: lane %u of the mask 0x%08x %s", operation, lane, mask,
       exists ? "has ended" : "does not exist: the block is not a multiple of 32 threads");
}

}  // namespace emulator
