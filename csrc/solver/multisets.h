// Multisets of small integers that share their memory: one is one number, equal sets are equal numbers.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace vaccel::solver {

// A multiset is a binary tree over the members 0 ... 2^height - 1, a leaf the count of one member.  Trees never change
// and no two nodes are alike: `add` makes at most `height` new nodes and finds those that exist.
class Multisets {
 public:
  using Id = uint32_t;                  // of a leaf the count itself, of any other node its index
  static constexpr Id kEmpty = 0;       // at every height
  static constexpr int64_t kNone = -1;  // no member: below every member, as having none is smaller

  explicit Multisets(int64_t members) {
    while ((int64_t{1} << height_) < members) ++height_;
    intern({kEmpty, kEmpty});
  }

  Id add(Id set, int64_t member) { return add(height_, set, member); }

  // The sign of (a with x) - (b with y): at the largest member they have not equally often, fewer is smaller.
  int compare(Id a, int64_t x, Id b, int64_t y) const { return compare(height_, a, x, b, y); }

 private:
  struct Node {
    Id low, high;  // smaller members, larger members
    bool operator==(const Node& other) const { return low == other.low && high == other.high; }
  };

  Id add(int height, Id set, int64_t member) {
    if (height == 0) return set + 1;
    const int64_t half = int64_t{1} << (height - 1);
    Node node = nodes_[set];
    if (member < half)
      node.low = add(height - 1, node.low, member);
    else
      node.high = add(height - 1, node.high, member - half);
    return intern(node);
  }

  // O(height): without x and y a call ends at once or goes down one way to what decides, since only equal sets have
  // equal ids; and each of x and y goes into one half.
  int compare(int height, Id a, int64_t x, Id b, int64_t y) const {
    if (a == b) return (x > y) - (x < y);
    if (height == 0) {
      const Id as = a + (x != kNone), bs = b + (y != kNone);
      return (as > bs) - (as < bs);
    }
    const int64_t half = int64_t{1} << (height - 1);
    const Node m = nodes_[a], n = nodes_[b];
    const int64_t high_x = x < half ? kNone : x - half, high_y = y < half ? kNone : y - half;
    if (const int sign = compare(height - 1, m.high, high_x, n.high, high_y)) return sign;
    return compare(height - 1, m.low, x < half ? x : kNone, n.low, y < half ? y : kNone);
  }

  // The node's index, a new one if there is none like it: open addressing, at most half full.
  Id intern(Node node) {
    if (2 * (nodes_.size() + 1) > slots_.size()) grow();
    Id& slot = find(node);
    if (slot != kFree) return slot;
    if (nodes_.size() >= kFree) throw std::length_error("the schedule solver is out of node numbers");
    nodes_.push_back(node);
    return slot = static_cast<Id>(nodes_.size() - 1);
  }

  Id& find(Node node) {
    const uint64_t mask = slots_.size() - 1;
    uint64_t at = (uint64_t{node.high} << 32 | node.low) * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
    at ^= at >> 32;
    for (;; ++at)
      if (Id& slot = slots_[at & mask]; slot == kFree || nodes_[slot] == node) return slot;
  }

  void grow() {
    slots_.assign(slots_.empty() ? 1024 : 2 * slots_.size(), Id{kFree});
    for (Id id = 0; id < nodes_.size(); ++id) find(nodes_[id]) = id;
  }

  static constexpr Id kFree = std::numeric_limits<Id>::max();
  int height_ = 0;
  std::vector<Node> nodes_;  // by id
  std::vector<Id> slots_;    // ids by hash, a power of two of them
};

}  // namespace vaccel::solver
