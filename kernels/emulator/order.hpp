// The order in which threads of a block, blocks of a grid and branches of a graph run. CUDA promises none; a kernel that
// forgets a barrier often still works in one order, so the tests run in several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

struct Order {
  enum class Kind { forward, reversed, shuffled } kind = Kind::forward;
  uint64_t seed = 0;
};

// Reads "forward", "reversed", "shuffled" or "shuffled:<seed>". False if `text` is none of these.
bool parse_order(const std::string& text, Order* order);

// slots[linear thread number] = place in the running order. Lanes of a warp stay neighbours. `block` is the block's
// number: each block is shuffled differently.
void order_threads(const Order& order, uint64_t block, unsigned thread_count, uint16_t* slots);

// Which of `count` is taken next, by the number of the choice.
size_t choose(const Order& order, uint64_t turn, size_t count);

// The order of `count` blocks; empty for forward.
std::vector<uint32_t> order_blocks(const Order& order, uint64_t count);

}  // namespace emulator
