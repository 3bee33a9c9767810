// Layer after layer: which edge leads best to each node, given the best ways to all nodes with one edge less.
#include "layers.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "multisets.h"

namespace vaccel::solver {
namespace {

// Edges in the order of their end, then their start, then their index; without those that lead nowhere.
struct Into {
  std::vector<int64_t> first;  // [nodes + 1]
  std::vector<int32_t> edge, start;
  size_t widest = 0;  // the most edges into one node

  explicit Into(const UnitGraph& graph) : first(graph.nodes + 1) {
    const std::vector<char> leads = leading(graph);
    for (size_t e = 0; e < graph.edges; ++e)
      if (leads[graph.end[e]]) ++first[graph.end[e] + 1];
    for (const int64_t count : first) widest = std::max(widest, static_cast<size_t>(count));
    std::partial_sum(first.begin(), first.end(), first.begin());
    edge.resize(first.back());
    start.resize(first.back());
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (const int32_t e : by_start(graph))
      if (leads[graph.end[e]]) {
        start[next[graph.end[e]]] = graph.start[e];
        edge[next[graph.end[e]]++] = e;
      }
  }

  // Stable, by counting.
  static std::vector<int32_t> by_start(const UnitGraph& graph) {
    std::vector<int64_t> next(graph.nodes + 1);
    for (size_t e = 0; e < graph.edges; ++e) ++next[graph.start[e] + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    std::vector<int32_t> order(graph.edges);
    for (size_t e = 0; e < graph.edges; ++e) order[next[graph.start[e]]++] = static_cast<int32_t>(e);
    return order;
  }

  // Whether a final can be reached from each node.
  static std::vector<char> leading(const UnitGraph& graph) {
    std::vector<char> leads(graph.nodes);
    for (const int32_t node : graph.finals) leads[node] = 1;
    const std::vector<int32_t> order = by_start(graph);
    for (size_t i = order.size(); i-- > 0;)
      if (leads[graph.end[order[i]]]) leads[graph.start[order[i]]] = 1;
    return leads;
  }
};

struct Taken {  // how a node of the layer at hand is reached
  int32_t node, from;
  int64_t slot;  // of the edge in Into
};

// An objective holds the values of one layer's paths by node, none where a node is not reached.

class Sums {
 public:
  Sums(const UnitGraph& graph, const Into& into) : values_(graph.nodes, kNone), error_(into.edge.size()) {
    for (size_t slot = 0; slot < error_.size(); ++slot) error_[slot] = graph.error[into.edge[slot]];
    values_[0] = 0;
  }
  bool reached(int32_t node) const { return values_[node] >= 0; }
  bool less(int32_t a, int64_t with, int32_t b, int64_t and_with) const {
    return values_[a] + error_[with] < values_[b] + error_[and_with];
  }
  bool less(int32_t a, int32_t b) const { return values_[a] < values_[b]; }
  void advance(const std::vector<Taken>& layer) {
    std::vector<double> next(values_.size(), kNone);
    for (const Taken& t : layer) next[t.node] = values_[t.from] + error_[t.slot];
    values_.swap(next);
  }

 private:
  static constexpr double kNone = -1;
  std::vector<double> values_, error_;
};

// Leximax compares multisets of ranks, all of one size in a layer.  A layer's multisets are kept sorted: of each its
// place, and between neighbours the largest rank that they have not equally often.  Between any two multisets that rank
// is the largest between neighbours from one to the other.  So a comparison is one look into a table of maxima.
//
// With x and y added it still decides, but where the smaller multiset gains the very rank at which it had fewer.  That
// is rare; then the multisets themselves are compared, as trees, which are made only of those that are asked for, and
// of all in every kWindow-th layer, so that no older layer is needed.
class Leximaxes {
 public:
  Leximaxes(const UnitGraph& graph, const Into& into)
      : place_(graph.nodes, kNone), rank_(into.edge.size()), ways_((kWindow + 1) * graph.nodes), sets_(1) {
    std::vector<double> errors(into.edge.size());
    for (size_t slot = 0; slot < errors.size(); ++slot) errors[slot] = graph.error[into.edge[slot]];
    std::sort(errors.begin(), errors.end());
    errors.erase(std::unique(errors.begin(), errors.end()), errors.end());
    for (size_t slot = 0; slot < rank_.size(); ++slot) {
      const auto found = std::lower_bound(errors.begin(), errors.end(), graph.error[into.edge[slot]]);
      rank_[slot] = static_cast<int32_t>(found - errors.begin());
    }
    sets_ = Multisets(static_cast<int64_t>(errors.size()));
    place_[0] = 0;
    at_ = {0};
    items_ = {{0, 0, 0}};
    ways_[0].tree = Multisets::kEmpty;
    table_.resize(1);
  }

  bool reached(int32_t node) const { return place_[node] >= 0; }
  bool less(int32_t a, int64_t with, int32_t b, int64_t and_with) {
    return less_at(place_[a], rank_[with], place_[b], rank_[and_with]);
  }
  bool less(int32_t a, int32_t b) const { return place_[a] < place_[b]; }

  void advance(const std::vector<Taken>& layer) {
    sort(layer);
    std::fill(place_.begin(), place_.end(), kNone);  // items have their own
    std::vector<int32_t> between, at;
    for (size_t i = 0; i < items_.size(); ++i) {
      const int32_t apart = i == 0 ? kNone : difference(items_[i - 1], items_[i]);
      if (i > 0 && apart != kNone) between.push_back(apart);
      if (i == 0 || apart != kNone) at.push_back(items_[i].node);
      place_[items_[i].node] = static_cast<int32_t>(at.size()) - 1;
    }
    at_.swap(at);
    ++layer_;
    for (const Taken& t : layer) way(layer_, t.node) = {t.from, rank_[t.slot], kUnmade};
    if (layer_ % kWindow == 0) gather();
    tabulate(std::move(between));
  }

 private:
  struct Item {
    int32_t place, rank, node;
  };
  struct Way {  // to a node: the node before, the rank added, and the multiset where it was made
    int32_t from = 0, rank = 0;
    Multisets::Id tree = kUnmade;
  };
  static constexpr int32_t kNone = -1, kWindow = 32;
  static constexpr Multisets::Id kUnmade = std::numeric_limits<Multisets::Id>::max();

  Way& way(int32_t layer, int32_t node) {
    return ways_[static_cast<size_t>(layer % (kWindow + 1)) * place_.size() + node];
  }

  Multisets::Id tree(int32_t layer, int32_t node) {
    Way& here = way(layer, node);
    if (here.tree == kUnmade) here.tree = sets_.add(tree(layer - 1, here.from), here.rank);
    return here.tree;
  }

  // Makes the trees of this layer, and drops those that no other needs.
  void gather() {
    std::vector<Multisets::Id> trees;
    for (const int32_t node : at_) trees.push_back(tree(layer_, node));
    if (sets_.size() > 2 * live_ + 65536) {
      sets_ = sets_.kept(trees);
      live_ = sets_.size();
    }
    for (const Item& item : items_) way(layer_, item.node).tree = trees[place_[item.node]];
  }

  // As Multisets::difference, of what is at two places with x and y.
  int64_t compared(int32_t p, int32_t x, int32_t q, int32_t y) {
    const Multisets::Id a = tree(layer_, at_[p]), b = tree(layer_, at_[q]);
    return sets_.difference(a, x, b, y);
  }

  // Makes items_ of a layer and sorts them.  Nodes are nearly in the order of the last layer: what is out of it is taken
  // out, both of each two neighbours, and merged in again.
  void sort(const std::vector<Taken>& layer) {
    const auto less = [this](const Item& a, const Item& b) { return less_at(a.place, a.rank, b.place, b.rank); };
    index_.assign(place_.size(), kNone);
    for (size_t i = 0; i < layer.size(); ++i) index_[layer[i].node] = static_cast<int32_t>(i);
    std::vector<Item> kept, others;
    const auto offer = [&](const Taken& t) {
      const Item item{place_[t.from], rank_[t.slot], t.node};
      if (kept.empty() || !less(item, kept.back())) {
        kept.push_back(item);
      } else {
        others.insert(others.end(), {kept.back(), item});
        kept.pop_back();
      }
    };
    for (const Item& before : items_)
      if (index_[before.node] != kNone) offer(layer[index_[before.node]]);
    for (const Taken& t : layer)
      if (!reached(t.node)) offer(t);
    std::sort(others.begin(), others.end(), less);
    items_.resize(layer.size());
    std::merge(kept.begin(), kept.end(), others.begin(), others.end(), items_.begin(), less);
  }

  // The largest rank that the multisets at two places have not equally often, lower < upper.
  int32_t apart(int32_t lower, int32_t upper) const {
    const int level = 31 - __builtin_clz(static_cast<unsigned>(upper - lower));
    const std::vector<int32_t>& row = table_[level];
    return std::max(row[lower], row[upper - (1 << level)]);
  }

  // Whether what is at p, with x, is less than what is at q, with y.
  bool less_at(int32_t p, int32_t x, int32_t q, int32_t y) {
    if (p == q) return x < y;
    if (p < q) {
      if (x <= y) return true;
      const int32_t at = apart(p, q);
      return x == at ? compared(p, x, q, y) < 0 : x < at;
    }
    if (x >= y) return false;
    const int32_t at = apart(q, p);
    return y == at ? compared(p, x, q, y) < 0 : y > at;
  }

  // The largest rank that two have not equally often; kNone where they are equal.
  int32_t difference(const Item& a, const Item& b) {
    if (a.place == b.place) return a.rank == b.rank ? kNone : std::max(a.rank, b.rank);
    const Item &lower = a.place < b.place ? a : b, &upper = a.place < b.place ? b : a;
    const int32_t at = apart(lower.place, upper.place);
    if (lower.rank == upper.rank) return at;
    if (lower.rank > upper.rank && lower.rank == at) {
      const int64_t found = compared(a.place, a.rank, b.place, b.rank);
      return static_cast<int32_t>((found < 0 ? -found : found) - 1);
    }
    return std::max({at, lower.rank, upper.rank});
  }

  void tabulate(std::vector<int32_t> between) {
    table_.resize(1);
    table_[0] = std::move(between);
    const size_t count = table_[0].size();
    for (size_t width = 1; 2 * width <= count; width *= 2) {
      const std::vector<int32_t>& last = table_.back();
      std::vector<int32_t> row(count + 1 - 2 * width);
      for (size_t i = 0; i < row.size(); ++i) row[i] = std::max(last[i], last[i + width]);
      table_.push_back(std::move(row));
    }
  }

  std::vector<int32_t> place_;               // by node; equal multisets share one
  std::vector<int32_t> at_;                  // by place, a node that has it
  std::vector<int32_t> rank_;                // of each edge's error, by slot; equal errors share one
  std::vector<std::vector<int32_t>> table_;  // [level][place]: the largest of 2^level ranks between neighbours
  std::vector<Item> items_;                  // the layer's nodes, sorted
  std::vector<int32_t> index_;               // by node: which of the layer's it is
  std::vector<Way> ways_;  // the last kWindow + 1 layers', by node
  int32_t layer_ = 0;
  Multisets sets_;
  size_t live_ = 0;  // nodes of the trees when they were last gathered
};

// Back is wide enough for the number of edges into any node, and one more.
template <class Objective, class Back>
class Layers {
 public:
  Layers(const UnitGraph& graph, Into into) : graph_(graph), into_(std::move(into)), objective_(graph, into_) {}

  UnitPaths run() {
    end_at(0);
    std::vector<int32_t> far = farthest();
    int32_t low = 0, high = 1;  // the nodes of the last layer are in [low, high)
    for (int32_t layer = 1; low < high; ++layer) {
      const int32_t begin = low + 1, end = far[high - 1] + 1;
      rows_.push_back({begin, backs_.size()});
      low = high = end;
      taken_.clear();
      for (int32_t node = begin; node < end; ++node) {
        const int64_t slot = best(node);
        backs_.push_back(slot == kNone ? kUnreached : static_cast<Back>(slot - into_.first[node]));
        if (slot == kNone) continue;
        taken_.push_back({node, into_.start[slot], slot});
        low = std::min(low, node);
        high = node + 1;
      }
      if (taken_.empty()) break;
      objective_.advance(taken_);
      end_at(layer);
    }
    return paths();
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr Back kUnreached = std::numeric_limits<Back>::max();
  struct Row {
    int32_t begin;
    size_t at;
  };

  // The farthest node that an edge from each node, or from one before it, leads to.
  std::vector<int32_t> farthest() const {
    std::vector<int32_t> far(graph_.nodes, 0);
    for (int32_t node = 0; node < graph_.nodes; ++node)
      for (int64_t slot = into_.first[node]; slot < into_.first[node + 1]; ++slot) far[into_.start[slot]] = node;
    for (size_t i = 1; i < far.size(); ++i) far[i] = std::max(far[i], far[i - 1]);
    return far;
  }

  // The edge by which the node is best reached with one edge more than the last layer, or kNone.
  int64_t best(int32_t node) {
    int64_t found = kNone;
    for (int64_t slot = into_.first[node]; slot < into_.first[node + 1]; ++slot) {
      const int32_t from = into_.start[slot];
      if (!objective_.reached(from)) continue;
      if (found == kNone || objective_.less(from, slot, into_.start[found], found)) found = slot;
    }
    return found;
  }

  // Keeps where the best path of this many edges ends, if there is one.
  void end_at(int32_t layer) {
    int64_t found = kNone;
    for (const int32_t node : graph_.finals)
      if (objective_.reached(node) && (found == kNone || objective_.less(node, static_cast<int32_t>(found)))) found = node;
    if (found != kNone) ends_.push_back({layer, static_cast<int32_t>(found)});
  }

  UnitPaths paths() const {
    UnitPaths found;
    found.first.push_back(0);
    for (const auto& [layer, last] : ends_) {
      found.cost.push_back(layer);
      found.edges.resize(found.edges.size() + layer);
      int32_t node = last;
      for (int32_t k = layer; k > 0; --k) {
        const Row& row = rows_[k - 1];
        const int64_t slot = into_.first[node] + backs_[row.at + node - row.begin];
        found.edges[found.first.back() + k - 1] = into_.edge[slot];
        node = into_.start[slot];
      }
      found.first.push_back(static_cast<int64_t>(found.edges.size()));
    }
    return found;
  }

  const UnitGraph& graph_;
  Into into_;
  Objective objective_;
  std::vector<Taken> taken_;                      // the layer at hand
  std::vector<Row> rows_;                         // by layer: its first node and where it is in backs_
  std::vector<Back> backs_;                       // layer after layer, which of a node's edges was taken
  std::vector<std::pair<int32_t, int32_t>> ends_;  // (edges, node)
};

template <class Objective>
UnitPaths solved(const UnitGraph& graph) {
  Into into(graph);
  if (into.widest < std::numeric_limits<uint8_t>::max()) return Layers<Objective, uint8_t>(graph, std::move(into)).run();
  if (into.widest < std::numeric_limits<uint16_t>::max())
    return Layers<Objective, uint16_t>(graph, std::move(into)).run();
  return Layers<Objective, uint32_t>(graph, std::move(into)).run();
}

void check(const UnitGraph& graph) {
  if (graph.nodes < 1 || graph.nodes >= std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("there must be a node, and fewer than 2^31");
  if (graph.edges >= static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    throw std::invalid_argument("there must be fewer than 2^31 edges");
  for (size_t i = 0; i < graph.edges; ++i) {
    const bool forward = 0 <= graph.start[i] && graph.start[i] < graph.end[i] && graph.end[i] < graph.nodes;
    if (!forward || !(graph.error[i] >= 0))  // NaN fails the comparison
      throw std::invalid_argument("edge " + std::to_string(i) + " cannot be");
  }
  for (size_t i = 0; i < graph.finals.size(); ++i)
    if (graph.finals[i] < (i ? graph.finals[i - 1] + 1 : 0) || graph.finals[i] >= graph.nodes)
      throw std::invalid_argument("finals must be nodes, ascending");
}

}  // namespace

UnitPaths solve_units(const UnitGraph& graph, Objective objective) {
  check(graph);
  return objective == Objective::kSum ? solved<Sums>(graph) : solved<Leximaxes>(graph);
}

}  // namespace vaccel::solver
