// The schedule solver: the best path of every total cost, through steps whose edges lead forward.
//
// No torch, no Python.  vaccel/schedules.py is the public function, vaccel/reference/schedule.py the same in Python.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace vaccel::solver {

// A run's steps 0 ... nodes - 1 and what leads from one to a later one; edge i is the i-th entry of each vector.
struct Graph {
  int64_t nodes;
  std::vector<int64_t> start, end;  // 0 <= start < end < nodes; several edges may lead between the same two
  std::vector<int64_t> cost;        // >= 0
  std::vector<double> error;        // >= 0, infinity allowed, NaN not
};

enum class Objective {
  kLeximax,  // the smallest largest error, then the smallest second largest, ...; at last, fewer edges
  kSum,      // the smallest sum of errors, added along the path
};

// cost -> the best path's edges, for every cost of a path from step 0 to the last.
//
// Of paths equally good, the one found first stays: steps ascend, and edges into a step are taken in the order of
// their start, then of their index.  Throws std::invalid_argument for a graph that is not as described.
std::map<int64_t, std::vector<int64_t>> solve(const Graph& graph, Objective objective);

}  // namespace vaccel::solver
