// Running a kernel's grid on the host's cores.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel_table.hpp"
#include "order.hpp"
#include "results.hpp"
#include "vector_types.hpp"

namespace emulator {

struct Block;
struct Thread;

// The static __shared__ arrays of one module: the thread-local storage of its shared object, one copy a running block.
struct StaticShared {
  size_t tls_module = 0, bytes = 0;
};

// One kernel launch.
struct Launch {
  const Kernel* kernel;
  dim3 grid, block;
  unsigned dynamic_shared;  // bytes
  void** arguments;
  StaticShared static_shared;
  Order order;
  uint64_t block_count = 0;
  std::vector<uint32_t> block_order{};     // empty: forward
  std::atomic<uint64_t> next_block{0};
  std::atomic<int> failure{CUDA_SUCCESS};  // the first error of any block; the others then stop
  std::string failure_message{};
};

// Runs all blocks and returns the first error. One launch at a time: the caller holds the driver's lock.
CUresult run(Launch& launch);

// Runs the block that `block` describes (index, grid, launch set) on this OS thread. In threads.cpp.
void run_block(Block* block, uint64_t number);

// A block's memory: made once for each OS thread that runs blocks. In threads.cpp.
Block* block_of_this_os_thread();

// Makes the launch fail, if it has not yet, naming block and thread (`thread` may be null). In threads.cpp.
void fail_launch(Block* block, const Thread* thread, CUresult code, const char* message);

// Makes faults inside kernels (an illegal address, say) errors of the launch. In faults.cpp.
void catch_faults();
void catch_faults_on_this_os_thread();
void report_fault(Block* block, const Thread* thread);

// RARUNET_EMULATOR_THREADS, or all cores.
bool read_worker_count(unsigned* count);

}  // namespace emulator
