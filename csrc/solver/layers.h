// The schedule solver where every edge costs one: the best path of every number of edges, layer after layer.
//
// A layer holds the best way to every node with so many edges, and only the last layer's values are kept: of those
// before it one small number a node, which of its edges was taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "solver.h"

namespace vaccel::solver {

// Edge i is the i-th entry of start, end and error; every edge costs one.
struct UnitGraph {
  int64_t nodes;
  const int32_t *start, *end;       // [edges], 0 <= start < end < nodes
  const double* error;              // [edges], >= 0, infinity allowed, NaN not
  size_t edges;
  std::vector<int32_t> finals;      // where a path may end, ascending
};

// The i-th path has cost[i] edges, ascending: edges[first[i]] ... edges[first[i + 1]].
struct UnitPaths {
  std::vector<int32_t> cost, edges;
  std::vector<int64_t> first;
};

// The best path from node 0 to any of the finals, for every number of edges that a path has.
//
// The same paths as `solve` finds: of those equally good the one found first stays, where nodes and finals ascend and
// edges into a node are taken in the order of their start, then of their index.  Memory: up to 4 bytes (1 where no node
// has more than 255 edges into it) for every node and number of edges with which it is reached.
// Throws std::invalid_argument for a graph that is not as described.
UnitPaths solve_units(const UnitGraph& graph, Objective objective);

}  // namespace vaccel::solver
