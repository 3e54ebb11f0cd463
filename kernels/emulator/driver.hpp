// What the parts of the emulated driver API share: its lock, its handles, and streams that may be capturing.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "launch.hpp"
#include "results.hpp"

typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphExec_st* CUgraphExec;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

// A function the emulator exports under the driver's own name.
#define CUDA_API extern "C" __attribute__((visibility("default"))) CUresult

namespace emulator {

// One call at a time: work is done when it is submitted, so there is nothing to overlap.
std::recursive_mutex& driver_mutex();

// Holds the lock; `result` is an error when cuInit or a current context is missing.
struct Call {
  std::lock_guard<std::recursive_mutex> lock;
  CUresult result;
  Call();
};

// Handles that are alive, so that a stale one is refused instead of followed. A handle is its object's address.
template <class Handle, class Object> class Handles {
 public:
  Handle add(std::unique_ptr<Object> object) {
    Handle handle = reinterpret_cast<Handle>(object.get());
    objects_[handle] = std::move(object);
    return handle;
  }
  Object* find(Handle handle) {
    auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second.get();
  }
  bool remove(Handle handle) { return objects_.erase(handle) == 1; }

 private:
  std::map<Handle, std::unique_ptr<Object>> objects_;
};

// Does `work` now or, on a capturing stream, adds it to the graph.
CUresult submit(CUstream stream, std::function<CUresult()> work);

// An error if the stream does not exist, or if a capture forbids `operation`, which the capture then does not survive.
CUresult check_not_capturing(CUstream stream, const char* operation);

// The same for operations that wait for, or change, the whole device.
CUresult check_nothing_captures(const char* operation);

struct Function {
  const Kernel* kernel;
  StaticShared static_shared;
  unsigned max_dynamic_shared;  // bytes; raised by cuFuncSetAttribute
};

Function* find_function(CUfunction function);
const Order& launch_order();

// What the emulated device can do, by its compute capability.
struct DeviceLimits {
  int major, minor;
  unsigned shared_per_block_optin, shared_per_multiprocessor, threads_per_multiprocessor, blocks_per_multiprocessor;
};
const DeviceLimits& device_limits();
constexpr unsigned default_shared_per_block = 48 << 10;  // more only after cuFuncSetAttribute
constexpr int multiprocessor_count = 8;  // fixed, so that grids sized by it do not depend on the machine

}  // namespace emulator
