// One pass over the steps: for every cost at which a step is reached, the best way there.
//
// One is enough under either objective: what is best to a step stays best however the path goes on, since adding the
// same error to two sums or two multisets keeps their order.
#include "solver.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "multisets.h"

namespace vaccel::solver {
namespace {

// An objective is the value of a path and whether one path with an edge more is better than another with an edge more.

class Sum {
 public:
  using Value = double;
  explicit Sum(const Graph& graph) : error_(graph.error) {}
  Value start() const { return 0; }
  Value add(Value path, int64_t edge) const { return path + error_[edge]; }
  bool less(Value a, int64_t with, Value b, int64_t and_with) const { return add(a, with) < add(b, and_with); }

 private:
  const std::vector<double>& error_;
};

// Errors become their ranks; equal errors share one.
class Leximax {
 public:
  using Value = Multisets::Id;
  explicit Leximax(const Graph& graph) : Leximax(graph, sorted(graph.error)) {}
  Value start() const { return Multisets::kEmpty; }
  Value add(Value path, int64_t edge) { return sets_.add(path, rank_[edge]); }
  bool less(Value a, int64_t with, Value b, int64_t and_with) const {
    return sets_.compare(a, rank_[with], b, rank_[and_with]) < 0;
  }

 private:
  Leximax(const Graph& graph, const std::vector<double>& errors) : sets_(static_cast<int64_t>(errors.size())) {
    for (const double error : graph.error)
      rank_.push_back(std::lower_bound(errors.begin(), errors.end(), error) - errors.begin());
  }
  static std::vector<double> sorted(std::vector<double> errors) {
    std::sort(errors.begin(), errors.end());
    errors.erase(std::unique(errors.begin(), errors.end()), errors.end());
    return errors;
  }

  std::vector<int64_t> rank_;  // of each edge's error
  Multisets sets_;
};

// Edges into each step, by start and then index.
std::vector<std::vector<int64_t>> edges_into(const Graph& graph) {
  std::vector<std::vector<int64_t>> into(graph.nodes);
  for (size_t edge = 0; edge < graph.end.size(); ++edge) into[graph.end[edge]].push_back(edge);
  for (auto& edges : into)
    std::stable_sort(edges.begin(), edges.end(), [&](int64_t a, int64_t b) { return graph.start[a] < graph.start[b]; });
  return into;
}

template <class Objective>
class Search {
 public:
  explicit Search(const Graph& graph) : graph_(graph), objective_(graph) {}

  std::map<int64_t, std::vector<int64_t>> run() {
    const auto into = edges_into(graph_);
    states_.push_back({0, objective_.start(), kNone, kNone});
    first_ = {0, 1};
    for (int64_t node = 1; node < graph_.nodes; ++node) {
      ways_.clear();
      for (const int64_t edge : into[node]) offer(edge);
      for (const Way& way : ways_)
        states_.push_back({way.cost, objective_.add(states_[way.from].value, way.edge), way.from, way.edge});
      first_.push_back(states_.size());
    }
    std::map<int64_t, std::vector<int64_t>> found;
    for (size_t state = first_[graph_.nodes - 1]; state < states_.size(); ++state)
      found.emplace_hint(found.end(), states_[state].cost, path(state));
    return found;
  }

 private:
  using Value = typename Objective::Value;
  static constexpr int64_t kNone = -1;

  struct State {  // the best way to a step at a cost
    int64_t cost;
    Value value;
    int64_t from, edge;  // the state before and what leads here
  };
  struct Way {  // a state before it is made
    int64_t cost, from, edge;
  };

  // Merges into ways_ what `edge` makes of the states at its start; both ascend in cost.  Of equals the earlier stays.
  void offer(int64_t edge) {
    const int64_t start = graph_.start[edge], cost = graph_.cost[edge];
    merged_.clear();
    auto way = ways_.begin();
    for (int64_t from = first_[start]; from < first_[start + 1]; ++from) {
      const Way offered{states_[from].cost + cost, from, edge};
      while (way != ways_.end() && way->cost < offered.cost) merged_.push_back(*way++);
      const bool contested = way != ways_.end() && way->cost == offered.cost;
      merged_.push_back(contested && !better(offered, *way) ? *way : offered);
      way += contested;
    }
    merged_.insert(merged_.end(), way, ways_.end());
    ways_.swap(merged_);
  }

  bool better(const Way& a, const Way& b) const {
    return objective_.less(states_[a.from].value, a.edge, states_[b.from].value, b.edge);
  }

  std::vector<int64_t> path(int64_t state) const {
    std::vector<int64_t> edges;
    for (; states_[state].edge != kNone; state = states_[state].from) edges.push_back(states_[state].edge);
    std::reverse(edges.begin(), edges.end());
    return edges;
  }

  const Graph& graph_;
  Objective objective_;
  std::vector<State> states_;       // step after step, each step's by cost
  std::vector<int64_t> first_;      // where each step's begin, and the last one's end
  std::vector<Way> ways_, merged_;  // to the step at hand, by cost
};

void check(const Graph& graph) {
  const size_t edges = graph.start.size();
  if (graph.nodes < 1) throw std::invalid_argument("there must be a step");
  if (graph.end.size() != edges || graph.cost.size() != edges || graph.error.size() != edges)
    throw std::invalid_argument("start, end, cost and error must be of one length");
  // No path is longer than nodes - 1 edges, so no sum of costs overflows.
  const int64_t dearest = std::numeric_limits<int64_t>::max() / graph.nodes;
  for (size_t i = 0; i < edges; ++i) {
    const bool forward = 0 <= graph.start[i] && graph.start[i] < graph.end[i] && graph.end[i] < graph.nodes;
    // NaN fails the comparison.
    if (!forward || graph.cost[i] < 0 || graph.cost[i] > dearest || !(graph.error[i] >= 0))
      throw std::invalid_argument("edge " + std::to_string(i) + " cannot be");
  }
}

}  // namespace

std::map<int64_t, std::vector<int64_t>> solve(const Graph& graph, Objective objective) {
  check(graph);
  return objective == Objective::kSum ? Search<Sum>(graph).run() : Search<Leximax>(graph).run();
}

}  // namespace vaccel::solver
