#include "order.hpp"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "threads.hpp"

namespace emulator {
namespace {

// SplitMix64 (Steele, Lea and Flood 2014): the same numbers on every machine.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
};

template <class Iterator> void shuffle(Iterator begin, Iterator end, Random& random) {
  for (size_t left = end - begin; left > 1; --left) std::swap(begin[left - 1], begin[random.next() % left]);
}

}  // namespace

bool parse_order(const std::string& text, Order* order) {
  if (text == "forward") *order = {Order::Kind::forward, 0};
  else if (text == "reversed") *order = {Order::Kind::reversed, 0};
  else if (text == "shuffled") *order = {Order::Kind::shuffled, 0};
  else if (text.rfind("shuffled:", 0) == 0) {
    char* end;
    *order = {Order::Kind::shuffled, strtoull(text.c_str() + 9, &end, 10)};
    return *end == 0 && text.size() > 9;
  } else return false;
  return true;
}

void order_threads(const Order& order, uint64_t block, unsigned thread_count, uint16_t* slots) {
  if (order.kind == Order::Kind::forward) std::iota(slots, slots + thread_count, 0);
  if (order.kind == Order::Kind::reversed)
    for (unsigned linear = 0; linear < thread_count; ++linear) slots[linear] = thread_count - 1 - linear;
  if (order.kind != Order::Kind::shuffled) return;
  Random random{order.seed ^ (block + 1) * 0x9e3779b97f4a7c15};
  unsigned warp_count = (thread_count + warp_size - 1) / warp_size;
  uint16_t warps[max_threads_per_block / warp_size], lanes[warp_size];
  std::iota(warps, warps + warp_count, 0);
  shuffle(warps, warps + warp_count, random);
  unsigned next = 0;
  for (unsigned position = 0; position < warp_count; ++position) {
    unsigned first = warps[position] * warp_size, count = std::min(warp_size, thread_count - first);
    std::iota(lanes, lanes + count, 0);
    shuffle(lanes, lanes + count, random);
    for (unsigned lane = 0; lane < count; ++lane) slots[first + lanes[lane]] = next++;
  }
}

size_t choose(const Order& order, uint64_t turn, size_t count) {
  if (order.kind == Order::Kind::forward) return 0;
  if (order.kind == Order::Kind::reversed) return count - 1;
  return Random{order.seed ^ (turn + 1) * 0x9e3779b97f4a7c15}.next() % count;
}

std::vector<uint32_t> order_blocks(const Order& order, uint64_t count) {
  if (order.kind == Order::Kind::forward) return {};
  std::vector<uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order.kind == Order::Kind::reversed) std::reverse(blocks.begin(), blocks.end());
  Random random{order.seed};
  if (order.kind == Order::Kind::shuffled) shuffle(blocks.begin(), blocks.end(), random);
  return blocks;
}

}  // namespace emulator
