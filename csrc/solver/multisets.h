// Multisets of small integers that share their memory: one is one number, equal sets are equal numbers.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace vaccel::solver {

// A multiset is a tree over the members 0 ... kWidth^height - 1, a leaf the count of one member.  Trees never change
// and no two nodes are alike: `add` makes at most `height` new nodes and finds those that exist.
class Multisets {
 public:
  using Id = uint32_t;                  // of a leaf the count itself, of any other node its index
  static constexpr Id kEmpty = 0;       // at every height
  static constexpr int64_t kNone = -1;  // no member: below every member, as having none is smaller

  explicit Multisets(int64_t members) {
    while ((int64_t{1} << (kBits * height_)) < members) ++height_;
    intern({});
  }

  Id add(Id set, int64_t member) { return add(height_, set, member); }

  // The sign of (a with x) - (b with y): at the largest member they have not equally often, fewer is smaller.
  int compare(Id a, int64_t x, Id b, int64_t y) const {
    const int64_t found = difference(a, x, b, y);
    return (found > 0) - (found < 0);
  }

  // That member plus one, with the sign of `compare`; 0 where they are equal.
  int64_t difference(Id a, int64_t x, Id b, int64_t y) const { return difference(height_, 0, a, x, b, y); }

  // The same sets in a new store that holds nothing else; `sets` become their names there.
  Multisets kept(std::vector<Id>& sets) const {
    Multisets fresh(1);
    fresh.height_ = height_;
    std::vector<Id> moved(nodes_.size(), kFree);
    for (Id& set : sets) set = copy(height_, set, fresh, moved);
    return fresh;
  }

  size_t size() const { return nodes_.size(); }

 private:
  static constexpr int kBits = 2, kWidth = 1 << kBits;
  using Node = std::array<Id, kWidth>;  // by the members' highest digit, ascending

  Id add(int height, Id set, int64_t member) {
    if (height == 0) return set + 1;
    const int shift = kBits * (height - 1);
    Node node = nodes_[set];
    Id& child = node[member >> shift];
    child = add(height - 1, child, member & ((int64_t{1} << shift) - 1));
    return intern(node);
  }

  // O(height): without x and y a call ends at once or goes down one way to what decides, since only equal sets have
  // equal ids; and each of x and y goes into one child.  Members are counted from `base`.
  int64_t difference(int height, int64_t base, Id a, int64_t x, Id b, int64_t y) const {
    if (a == b) return x > y ? base + x + 1 : x < y ? -(base + y + 1) : 0;
    if (height == 0) {
      const Id as = a + (x != kNone), bs = b + (y != kNone);
      return as > bs ? base + 1 : as < bs ? -(base + 1) : 0;
    }
    const int shift = kBits * (height - 1);
    const Node &m = nodes_[a], &n = nodes_[b];
    for (int64_t digit = kWidth - 1; digit >= 0; --digit) {
      const int64_t begin = digit << shift, in_x = x < begin ? kNone : x - begin, in_y = y < begin ? kNone : y - begin;
      if (const int64_t found = difference(height - 1, base + begin, m[digit], in_x, n[digit], in_y)) return found;
      if (in_x != kNone) x = kNone;
      if (in_y != kNone) y = kNone;
    }
    return 0;
  }

  Id copy(int height, Id set, Multisets& fresh, std::vector<Id>& moved) const {
    if (height == 0) return set;
    if (moved[set] != kFree) return moved[set];
    Node node = nodes_[set];
    for (Id& child : node) child = copy(height - 1, child, fresh, moved);
    return moved[set] = fresh.intern(node);
  }

  // The node's index, a new one if there is none like it: open addressing, at most half full.
  Id intern(const Node& node) {
    if (2 * (nodes_.size() + 1) > slots_.size()) grow();
    Id& slot = find(node);
    if (slot != kFree) return slot;
    if (nodes_.size() >= kFree) throw std::length_error("the schedule solver is out of node numbers");
    nodes_.push_back(node);
    return slot = static_cast<Id>(nodes_.size() - 1);
  }

  Id& find(const Node& node) {
    const uint64_t mask = slots_.size() - 1;
    uint64_t at = 0;
    for (int i = 0; i < kWidth; i += 2) {
      at = (at ^ (uint64_t{node[i]} << 32 | node[i + 1])) * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
      at ^= at >> 32;
    }
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
