// Device memory: host memory whose every allocation is known, poisoned and fenced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "results.hpp"

namespace emulator {

CUresult allocate(size_t bytes, uintptr_t* address);
CUresult release(uintptr_t address);

// Whether [address, address + bytes) lies in one live allocation.
bool is_allocated(uintptr_t address, size_t bytes);

// Where `address` lies, in words: "4 bytes past the end of the allocation of 400 bytes at 0x...".
std::string describe_address(uintptr_t address);

// Reports the first allocation whose guard bytes were overwritten, and mends it. `culprit` says what ran before.
CUresult check_guards(const char* culprit);

size_t total_memory();
size_t free_memory();

}  // namespace emulator
