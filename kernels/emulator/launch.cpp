// A persistent pool of workers takes the blocks of a grid; the calling thread works along.
#include "launch.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "threads.hpp"

namespace emulator {
namespace {

void run_blocks(Launch& launch) {
  Block* block = block_of_this_os_thread();
  block->launch = &launch;
  block->dimension = launch.block;
  block->grid = launch.grid;
  while (launch.failure.load(std::memory_order_relaxed) == CUDA_SUCCESS) {
    uint64_t next = launch.next_block.fetch_add(1, std::memory_order_relaxed);
    if (next >= launch.block_count) break;
    uint64_t number = launch.block_order.empty() ? next : launch.block_order[next];
    uint64_t row = number / launch.grid.x;
    block->index = {static_cast<unsigned>(number % launch.grid.x), static_cast<unsigned>(row % launch.grid.y),
                    static_cast<unsigned>(row / launch.grid.y)};
    run_block(block, number);
  }
}

class WorkerPool {
 public:
  explicit WorkerPool(unsigned workers) : helper_count_(workers - 1) {
    for (unsigned helper = 0; helper < helper_count_; ++helper) std::thread([this] { help(); }).detach();
  }

  void run(Launch& launch) {
    unsigned wanted = std::min<uint64_t>(helper_count_, launch.block_count - 1);
    if (wanted > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      launch_ = &launch;
      wanted_ = busy_ = wanted;
      wake_.notify_all();
    }
    run_blocks(launch);
    if (wanted > 0) {
      std::unique_lock<std::mutex> lock(mutex_);
      busy_ -= wanted_;  // those that have not woken are not needed any more
      wanted_ = 0;
      done_.wait(lock, [this] { return busy_ == 0; });
    }
  }

 private:
  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      Launch* launch = launch_;
      lock.unlock();
      run_blocks(*launch);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  const unsigned helper_count_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Launch* launch_ = nullptr;
  unsigned wanted_ = 0;  // helpers still to join the launch
  unsigned busy_ = 0;    // helpers that have to leave it before it is over
};

}  // namespace

bool read_worker_count(unsigned* count) {
  const char* text = getenv("RARUNET_EMULATOR_THREADS");
  *count = std::max(1u, std::thread::hardware_concurrency());
  if (text == nullptr || *text == 0) return true;
  char* end;
  unsigned long value = strtoul(text, &end, 10);
  if (*end != 0 || value < 1 || value > 1024) return false;
  *count = value;
  return true;
}

CUresult run(Launch& launch) {
  static WorkerPool* pool = [] {  // never destroyed: its threads live as long as the process
    unsigned workers;
    read_worker_count(&workers);  // cuInit has refused a bad value
    return new WorkerPool(workers);
  }();
  launch.block_count = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  launch.block_order = order_blocks(launch.order, launch.block_count);
  pool->run(launch);
  auto failure = static_cast<CUresult>(launch.failure.load());
  return failure == CUDA_SUCCESS ? CUDA_SUCCESS : report(failure, "%s", launch.failure_message.c_str());
}

}  // namespace emulator
