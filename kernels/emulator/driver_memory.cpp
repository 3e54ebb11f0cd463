// The emulated driver API: memory, copies and fills. Every device address is checked against the allocations.
#include <cstdlib>
#include <cstring>
#include <set>

#include "driver.hpp"
#include "memory.hpp"

namespace emulator {
namespace {

std::set<void*>& pinned_memory() {
  static auto* instance = new std::set<void*>;
  return *instance;
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult check_range(const char* operation, CUdeviceptr address, size_t bytes) {
  if (is_allocated(address, bytes)) return CUDA_SUCCESS;
  return report(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes at 0x%llx are not in one allocation: %s", operation, bytes,
                address, describe_address(address).c_str());
}

// A copy whose ends are checked when it is submitted and, in a graph, at each replay. Null: host memory, not checked.
struct Copy {
  const char* operation;
  void* to;
  const void* from;
  size_t bytes;
  CUdeviceptr device_to, device_from;

  CUresult check() const {
    if (bytes == 0) return CUDA_SUCCESS;
    if (device_to != 0)
      if (CUresult error = check_range(operation, device_to, bytes)) return error;
    if (device_from != 0)
      if (CUresult error = check_range(operation, device_from, bytes)) return error;
    return to == nullptr || from == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  }
};

CUresult copy(CUstream stream, const Copy& copy) {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = copy.check()) return error;
  return submit(stream, [copy] {
    CUresult error = copy.check();
    if (error == CUDA_SUCCESS) memmove(copy.to, copy.from, copy.bytes);
    return error;
  });
}

CUresult copy_to_device(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return copy(stream, {"copy to the device", pointer(to), from, bytes, to, 0});
}
CUresult copy_to_host(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy(stream, {"copy to the host", to, pointer(from), bytes, 0, from});
}
CUresult copy_on_device(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy(stream, {"copy on the device", pointer(to), pointer(from), bytes, to, from});
}

template <class T> CUresult fill(CUdeviceptr address, T value, size_t count, CUstream stream) {
  Call call;
  if (call.result) return call.result;
  if (address % sizeof(T) != 0) return report(CUDA_ERROR_INVALID_VALUE, "fill: 0x%llx is not aligned", address);
  auto check = [=] { return count == 0 ? CUDA_SUCCESS : check_range("fill", address, count * sizeof(T)); };
  if (CUresult error = check()) return error;
  return submit(stream, [=] {
    CUresult error = check();
    if (error == CUDA_SUCCESS)
      for (size_t index = 0; index < count; ++index) static_cast<T*>(pointer(address))[index] = value;
    return error;
  });
}

}  // namespace
}  // namespace emulator

using namespace emulator;

// ---- device memory ----------------------------------------------------------------------------------------------------

CUDA_API cuMemGetInfo_v2(size_t* free, size_t* total) {
  *free = free_memory();
  *total = total_memory();
  return CUDA_SUCCESS;
}

CUDA_API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = check_nothing_captures("cuMemAlloc")) return error;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  uintptr_t allocated;
  if (CUresult error = allocate(bytes, &allocated)) return error;
  *address = allocated;
  return CUDA_SUCCESS;
}

CUDA_API cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream stream) {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = check_not_capturing(stream, "cuMemAllocAsync (allocations in graphs are not emulated)")) return error;
  *address = 0;  // what CUDA gives for no bytes
  if (bytes == 0) return CUDA_SUCCESS;
  uintptr_t allocated;
  if (CUresult error = allocate(bytes, &allocated)) return error;
  *address = allocated;
  return CUDA_SUCCESS;
}

CUDA_API cuMemFree_v2(CUdeviceptr address) {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = check_nothing_captures("cuMemFree")) return error;
  return address == 0 ? CUDA_SUCCESS : release(address);
}

CUDA_API cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = check_not_capturing(stream, "cuMemFreeAsync (allocations in graphs are not emulated)")) return error;
  return address == 0 ? CUDA_SUCCESS : release(address);
}

// ---- pinned host memory -----------------------------------------------------------------------------------------------

CUDA_API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  Call call;
  if (call.result) return call.result;
  *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (*memory == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  memset(*memory, 0xFF, bytes);
  pinned_memory().insert(*memory);
  return CUDA_SUCCESS;
}
CUDA_API cuMemAllocHost_v2(void** memory, size_t bytes) { return cuMemHostAlloc(memory, bytes, 0); }

CUDA_API cuMemFreeHost(void* memory) {
  Call call;
  if (call.result) return call.result;
  if (pinned_memory().erase(memory) == 0) return CUDA_ERROR_INVALID_VALUE;
  free(memory);
  return CUDA_SUCCESS;
}

// ---- copies -----------------------------------------------------------------------------------------------------------

CUDA_API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) { return copy_to_device(to, from, bytes, nullptr); }
CUDA_API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) { return copy_to_host(to, from, bytes, nullptr); }
CUDA_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return copy_on_device(to, from, bytes, nullptr); }
CUDA_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return copy_to_device(to, from, bytes, stream);
}
CUDA_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_to_host(to, from, bytes, stream);
}
CUDA_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_on_device(to, from, bytes, stream);
}

// ---- fills ------------------------------------------------------------------------------------------------------------

CUDA_API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) { return fill(to, value, count, nullptr); }
CUDA_API cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) { return fill(to, value, count, nullptr); }
CUDA_API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) { return fill(to, value, count, nullptr); }
CUDA_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  return fill(to, value, count, stream);
}
CUDA_API cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
  return fill(to, value, count, stream);
}
CUDA_API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  return fill(to, value, count, stream);
}
