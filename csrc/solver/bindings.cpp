// vaccel._solver: the schedule solver for Python.  vaccel/schedules.py checks what it is given and says what is wrong.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "solver.h"

namespace py = pybind11;

namespace {

using namespace vaccel::solver;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::vector<T> copied(const Array<T>& array) {
  if (array.ndim() != 1) throw std::invalid_argument("arrays must have one dimension");
  return {array.data(), array.data() + array.size()};
}

Objective objective_of(const std::string& name) {
  if (name == "leximax") return Objective::kLeximax;
  if (name == "sum") return Objective::kSum;
  throw std::invalid_argument("unknown objective '" + name + "'");
}

std::map<int64_t, std::vector<int64_t>> solve_arrays(int64_t num_nodes, const Array<int64_t>& start,
                                                     const Array<int64_t>& end, const Array<int64_t>& cost,
                                                     const Array<double>& error, const std::string& objective) {
  const Graph graph{num_nodes, copied(start), copied(end), copied(cost), copied(error)};
  const Objective chosen = objective_of(objective);
  const py::gil_scoped_release released;
  return solve(graph, chosen);
}

}  // namespace

PYBIND11_MODULE(_solver, m) {
  m.doc() = "The schedule solver's compiled core; use vaccel.schedules.solve.";
  m.def("solve", &solve_arrays, py::arg("num_nodes"), py::arg("start").noconvert(), py::arg("end").noconvert(),
        py::arg("cost").noconvert(), py::arg("error").noconvert(), py::arg("objective"),
        "Arrays of one entry an edge (int64, int64, int64, float64) -> {cost: indices of the best path's edges}.");
}
