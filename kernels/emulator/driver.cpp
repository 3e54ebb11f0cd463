// The emulated driver API: initialisation, devices and contexts.
#include "driver.hpp"

#include <cpuid.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "memory.hpp"

namespace emulator {
namespace {

bool initialized = false;
Order order;
thread_local std::vector<CUcontext> contexts;  // the current one is the last

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
constexpr DeviceLimits known_devices[] = {
    {7, 5, 64 << 10, 64 << 10, 1024, 16},   {8, 0, 163 << 10, 164 << 10, 2048, 32},
    {8, 6, 99 << 10, 100 << 10, 1536, 16},  {8, 9, 99 << 10, 100 << 10, 1536, 24},
    {9, 0, 227 << 10, 228 << 10, 2048, 32}, {10, 0, 227 << 10, 228 << 10, 2048, 32},
    {12, 0, 99 << 10, 100 << 10, 1536, 24},
};
const DeviceLimits* device = &known_devices[2];

CUcontext primary_context() {
  static char anchor;
  return reinterpret_cast<CUcontext>(&anchor);
}

// The build uses AVX2, FMA and F16C if its machine has them; this one may be another.
bool processor_suffices() {
#ifdef __AVX2__
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA) || !(c & bit_F16C)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
#else
  return true;
#endif
}

CUresult read_environment() {
  const char* text = getenv("RARUNET_EMULATOR_ORDER");
  if (text != nullptr && *text != 0 && !parse_order(text, &order))
    return report(CUDA_ERROR_INVALID_VALUE,
                  "RARUNET_EMULATOR_ORDER=%s: must be forward, reversed, shuffled or shuffled:<seed>", text);
  unsigned workers;
  if (!read_worker_count(&workers))
    return report(CUDA_ERROR_INVALID_VALUE, "RARUNET_EMULATOR_THREADS=%s: must be a number from 1 to 1024",
                  getenv("RARUNET_EMULATOR_THREADS"));
  text = getenv("RARUNET_EMULATOR_COMPUTE_CAPABILITY");
  if (text == nullptr || *text == 0) return CUDA_SUCCESS;
  for (const DeviceLimits& candidate : known_devices) {
    char name[16];
    snprintf(name, sizeof name, "%d.%d", candidate.major, candidate.minor);
    if (strcmp(name, text) == 0) {
      device = &candidate;
      return CUDA_SUCCESS;
    }
  }
  return report(CUDA_ERROR_INVALID_VALUE,
                "RARUNET_EMULATOR_COMPUTE_CAPABILITY=%s: must be 7.5, 8.0, 8.6, 8.9, 9.0, 10.0 or 12.0", text);
}

}  // namespace

std::recursive_mutex& driver_mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

Call::Call() : lock(driver_mutex()), result(CUDA_SUCCESS) {
  if (!initialized) result = CUDA_ERROR_NOT_INITIALIZED;
  else if (contexts.empty() || contexts.back() == nullptr) result = CUDA_ERROR_INVALID_CONTEXT;
}

const Order& launch_order() { return order; }
const DeviceLimits& device_limits() { return *device; }

}  // namespace emulator

using namespace emulator;

// ---- initialisation ---------------------------------------------------------------------------------------------------

CUDA_API cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> lock(driver_mutex());
  if (initialized) return CUDA_SUCCESS;
  if (!processor_suffices())
    return report(CUDA_ERROR_NOT_SUPPORTED, "built on another machine, with AVX2: run cargo clean and build again");
  if (CUresult error = read_environment()) return error;
  catch_faults();
  initialized = true;
  return CUDA_SUCCESS;
}

CUDA_API cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

// ---- devices ----------------------------------------------------------------------------------------------------------

CUDA_API cuDeviceGetCount(int* count) {
  *count = 1;
  return initialized ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUDA_API cuDeviceGet(CUdevice* device, int ordinal) {
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *device = 0;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUDA_API cuDeviceGetName(char* name, int length, CUdevice) {
  snprintf(name, length, "CUDA emulator");
  return CUDA_SUCCESS;
}

CUDA_API cuDeviceGetUuid_v2(char (*uuid)[16], CUdevice) {
  memcpy(uuid, "rarunet emulator", 16);
  return CUDA_SUCCESS;
}
CUDA_API cuDeviceGetUuid(char (*uuid)[16], CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUDA_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = total_memory();
  return CUDA_SUCCESS;
}

CUDA_API cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
  const DeviceLimits& limits = device_limits();
  switch (attribute) {
    case 1: *value = 1024; break;                       // MAX_THREADS_PER_BLOCK
    case 2: case 3: *value = 1024; break;               // MAX_BLOCK_DIM_X, Y
    case 4: *value = 64; break;                         // MAX_BLOCK_DIM_Z
    case 5: *value = 0x7FFFFFFF; break;                 // MAX_GRID_DIM_X
    case 6: case 7: *value = 65535; break;              // MAX_GRID_DIM_Y, Z
    case 8: *value = default_shared_per_block; break;   // MAX_SHARED_MEMORY_PER_BLOCK
    case 9: *value = 65536; break;                      // TOTAL_CONSTANT_MEMORY
    case 10: *value = 32; break;                        // WARP_SIZE
    case 12: case 82: *value = 65536; break;            // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
    case 13: case 36: *value = 1000000; break;          // CLOCK_RATE, MEMORY_CLOCK_RATE in kHz
    case 16: *value = multiprocessor_count; break;      // MULTIPROCESSOR_COUNT
    case 37: *value = 128; break;                       // GLOBAL_MEMORY_BUS_WIDTH in bits
    case 38: *value = 4 << 20; break;                   // L2_CACHE_SIZE
    case 39: *value = limits.threads_per_multiprocessor; break;
    case 41: *value = 1; break;                         // UNIFIED_ADDRESSING
    case 75: *value = limits.major; break;              // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = limits.minor; break;              // COMPUTE_CAPABILITY_MINOR
    case 81: *value = limits.shared_per_multiprocessor; break;
    case 97: *value = limits.shared_per_block_optin; break;
    case 106: *value = limits.blocks_per_multiprocessor; break;
    case 111: *value = 1024; break;                     // RESERVED_SHARED_MEMORY_PER_BLOCK
    case 115: *value = 1; break;                        // MEMORY_POOLS_SUPPORTED: cudarc then allocates in stream order
    default: *value = 0;                                // a feature that is not there
  }
  return CUDA_SUCCESS;
}

// ---- contexts ---------------------------------------------------------------------------------------------------------

CUDA_API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = primary_context();
  return initialized ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}
CUDA_API cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUDA_API cuDevicePrimaryCtxReset_v2(CUdevice) { return CUDA_SUCCESS; }
CUDA_API cuDevicePrimaryCtxSetFlags_v2(CUdevice, unsigned) { return CUDA_SUCCESS; }

CUDA_API cuCtxSetCurrent(CUcontext context) {
  if (contexts.empty()) contexts.push_back(context);
  else contexts.back() = context;
  return CUDA_SUCCESS;
}

CUDA_API cuCtxGetCurrent(CUcontext* context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return CUDA_SUCCESS;
}

CUDA_API cuCtxPushCurrent_v2(CUcontext context) {
  contexts.push_back(context);
  return CUDA_SUCCESS;
}

CUDA_API cuCtxPopCurrent_v2(CUcontext* context) {
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context != nullptr) *context = contexts.back();
  contexts.pop_back();
  return CUDA_SUCCESS;
}

// One device, one memory: a further context is another name for the primary one.
CUDA_API cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice) {
  *context = primary_context();
  return cuCtxPushCurrent_v2(*context);
}
CUDA_API cuCtxDestroy_v2(CUcontext context) {
  if (!contexts.empty() && contexts.back() == context) contexts.pop_back();
  return CUDA_SUCCESS;
}

CUDA_API cuCtxGetApiVersion(CUcontext, unsigned* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
CUDA_API cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}
CUDA_API cuCtxGetFlags(unsigned* flags) {
  *flags = 0;
  return CUDA_SUCCESS;
}
CUDA_API cuCtxSetFlags(unsigned) { return CUDA_SUCCESS; }
CUDA_API cuCtxGetLimit(size_t* value, int) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUDA_API cuCtxSetLimit(int, size_t) { return CUDA_SUCCESS; }
CUDA_API cuCtxGetCacheConfig(int* configuration) {
  *configuration = 0;
  return CUDA_SUCCESS;
}
CUDA_API cuCtxSetCacheConfig(int) { return CUDA_SUCCESS; }
CUDA_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return CUDA_SUCCESS;
}

CUDA_API cuCtxSynchronize() {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = check_nothing_captures("cuCtxSynchronize")) return error;
  return check_guards("something before cuCtxSynchronize");
}
