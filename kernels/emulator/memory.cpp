// Each allocation lies in pages of its own between two pages without access:
//
//     no access | guard bytes | the allocation (256-byte aligned) | guard bytes, < 256 | no access
//
// A kernel that runs far out faults at once, and the report names the thread. One that stays within the guard bytes
// reads NaN, and a write there is found when the launch ends. Freed memory loses its access, so that a use after free
// faults too.
#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

namespace emulator {
namespace {

constexpr size_t page = 4096;
constexpr size_t alignment = 256;             // of every pointer that cuMemAlloc gives
constexpr uint16_t guard = 0xFFC5;            // a NaN in fp16, bf16, fp32 and fp64, and not the poison
constexpr unsigned char poison = 0xFF;        // a NaN too
constexpr size_t remembered_releases = 4096;  // freed allocations whose addresses are kept out of use

struct Allocation {
  uintptr_t address;
  size_t bytes;
  uintptr_t first_page;  // the first page with access
  size_t page_bytes;     // all pages with access
  uintptr_t end() const { return address + bytes; }
};

struct Memory {
  std::mutex mutex;
  std::map<uintptr_t, Allocation> live;  // by address
  std::map<uintptr_t, Allocation> released;
  std::deque<uintptr_t> release_order;
  size_t used = 0;
};

Memory& memory() {
  static auto* instance = new Memory;
  return *instance;
}

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

void fill_guard(uintptr_t begin, uintptr_t end) {
  for (uintptr_t at = begin; at < end; ++at) *reinterpret_cast<unsigned char*>(at) = at % 2 ? guard >> 8 : guard & 0xFF;
}

// The first overwritten byte in [begin, end), or end.
uintptr_t find_damage(uintptr_t begin, uintptr_t end) {
  uintptr_t at = begin;
  for (; at < end && at % 8; ++at)
    if (*reinterpret_cast<unsigned char*>(at) != (at % 2 ? guard >> 8 : guard & 0xFF)) return at;
  constexpr uint64_t word = guard * 0x0001000100010001ull;
  while (at + 8 <= end && *reinterpret_cast<uint64_t*>(at) == word) at += 8;
  for (; at < end; ++at)
    if (*reinterpret_cast<unsigned char*>(at) != (at % 2 ? guard >> 8 : guard & 0xFF)) return at;
  return end;
}

std::string describe(const Allocation& allocation, uintptr_t address, const char* kind) {
  char text[160];
  if (address < allocation.address)
    snprintf(text, sizeof text, "%zu bytes before the %s of %zu bytes at 0x%zx", allocation.address - address, kind,
             allocation.bytes, allocation.address);
  else if (address < allocation.end())
    snprintf(text, sizeof text, "byte %zu of the %s of %zu bytes at 0x%zx", address - allocation.address, kind,
             allocation.bytes, allocation.address);
  else
    snprintf(text, sizeof text, "%zu bytes past the end of the %s of %zu bytes at 0x%zx", address - allocation.end(),
             kind, allocation.bytes, allocation.address);
  return text;
}

CUresult check_guards_of(const Allocation& allocation, const char* culprit) {
  uintptr_t last = allocation.first_page + allocation.page_bytes;
  uintptr_t damage = find_damage(allocation.first_page, allocation.address);
  if (damage == allocation.address) {
    damage = find_damage(allocation.end(), last);
    if (damage == last) return CUDA_SUCCESS;
  }
  fill_guard(allocation.first_page, allocation.address);
  fill_guard(allocation.end(), last);
  return report(CUDA_ERROR_ILLEGAL_ADDRESS, "%s wrote outside its memory: %s", culprit,
                describe(allocation, damage, "allocation").c_str());
}

const Allocation* find(const std::map<uintptr_t, Allocation>& allocations, uintptr_t address) {
  auto after = allocations.upper_bound(address);
  return after == allocations.begin() ? nullptr : &std::prev(after)->second;
}

}  // namespace

size_t total_memory() {  // three quarters of the machine's
  static const size_t total = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) / 4 * 3 * sysconf(_SC_PAGESIZE);
  return total;
}

size_t free_memory() {
  std::lock_guard<std::mutex> lock(memory().mutex);
  return total_memory() - memory().used;
}

CUresult allocate(size_t bytes, uintptr_t* address) {
  Memory& known = memory();
  std::lock_guard<std::mutex> lock(known.mutex);
  if (bytes > total_memory() - known.used)
    return report(CUDA_ERROR_OUT_OF_MEMORY, "out of memory: %zu bytes wanted, %zu of %zu free", bytes,
                  total_memory() - known.used, total_memory());
  size_t aligned = round_up(bytes, alignment), page_bytes = round_up(aligned, page);
  void* mapping = mmap(nullptr, page_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return report(CUDA_ERROR_OUT_OF_MEMORY, "no address space for %zu bytes", bytes);
  uintptr_t first_page = reinterpret_cast<uintptr_t>(mapping) + page;
  if (mprotect(reinterpret_cast<void*>(first_page), page_bytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, page_bytes + 2 * page);
    return report(CUDA_ERROR_OUT_OF_MEMORY, "the system grants no pages for %zu bytes", bytes);
  }
  *address = first_page + page_bytes - aligned;
  Allocation allocation{*address, bytes, first_page, page_bytes};
  fill_guard(first_page, *address);
  memset(reinterpret_cast<void*>(*address), poison, bytes);
  fill_guard(allocation.end(), first_page + page_bytes);
  known.live[*address] = allocation;
  known.used += bytes;
  return CUDA_SUCCESS;
}

CUresult release(uintptr_t address) {
  Memory& known = memory();
  std::lock_guard<std::mutex> lock(known.mutex);
  auto found = known.live.find(address);
  if (found == known.live.end())
    return report(CUDA_ERROR_INVALID_VALUE, "free of 0x%zx, which is %s", address,
                  known.released.count(address) ? "freed already" : "not the start of an allocation");
  Allocation allocation = found->second;
  CUresult result = check_guards_of(allocation, "something before this free");
  known.live.erase(found);
  known.used -= allocation.bytes;
  mmap(reinterpret_cast<void*>(allocation.first_page), allocation.page_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  known.released[address] = allocation;
  known.release_order.push_back(address);
  if (known.release_order.size() > remembered_releases) {
    Allocation oldest = known.released[known.release_order.front()];
    munmap(reinterpret_cast<void*>(oldest.first_page - page), oldest.page_bytes + 2 * page);
    known.released.erase(oldest.address);
    known.release_order.pop_front();
  }
  return result;
}

bool is_allocated(uintptr_t address, size_t bytes) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  const Allocation* allocation = find(memory().live, address);
  return allocation != nullptr && address <= allocation->end() && bytes <= allocation->end() - address;
}

std::string describe_address(uintptr_t address) {
  Memory& known = memory();
  std::lock_guard<std::mutex> lock(known.mutex);
  const Allocation* released = find(known.released, address);
  if (released != nullptr && address < released->end()) return describe(*released, address, "freed allocation");
  const Allocation* below = find(known.live, address);
  auto above = known.live.upper_bound(address);
  size_t below_distance = below != nullptr ? address - below->end() : SIZE_MAX;
  if (below != nullptr && address < below->end()) below_distance = 0;
  size_t above_distance = above != known.live.end() ? above->first - address : SIZE_MAX;
  if (below_distance == SIZE_MAX && above_distance == SIZE_MAX) return "there are no allocations";
  const Allocation& nearest = below_distance <= above_distance ? *below : above->second;
  return describe(nearest, address, "nearest allocation");
}

CUresult check_guards(const char* culprit) {
  Memory& known = memory();
  std::lock_guard<std::mutex> lock(known.mutex);
  CUresult first = CUDA_SUCCESS;
  for (auto& [address, allocation] : known.live) {
    CUresult result = check_guards_of(allocation, culprit);
    if (first == CUDA_SUCCESS) first = result;
  }
  return first;
}

}  // namespace emulator
