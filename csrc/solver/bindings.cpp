// vaccel._solver: the schedule solver for Python.  vaccel/schedules.py checks what it is given and says what is wrong.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "layers.h"
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

template <class T>
py::array_t<T> returned(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple solve_unit_arrays(int64_t num_nodes, const Array<int32_t>& start, const Array<int32_t>& end,
                            const Array<double>& error, const Array<int32_t>& finals, const std::string& objective) {
  if (start.ndim() != 1 || end.ndim() != 1 || error.ndim() != 1)
    throw std::invalid_argument("arrays must have one dimension");
  if (end.size() != start.size() || error.size() != start.size())
    throw std::invalid_argument("start, end and error must be of one length");
  const UnitGraph graph{num_nodes,    start.data(), end.data(),
                        error.data(), static_cast<size_t>(start.size()), copied(finals)};
  const Objective chosen = objective_of(objective);
  UnitPaths found;
  {
    const py::gil_scoped_release released;
    found = solve_units(graph, chosen);
  }
  return py::make_tuple(returned(found.cost), returned(found.first), returned(found.edges));
}

}  // namespace

PYBIND11_MODULE(_solver, m) {
  m.doc() = "The schedule solver's compiled core; use vaccel.schedules.solve.";
  m.def("solve", &solve_arrays, py::arg("num_nodes"), py::arg("start").noconvert(), py::arg("end").noconvert(),
        py::arg("cost").noconvert(), py::arg("error").noconvert(), py::arg("objective"),
        "Arrays of one entry an edge (int64, int64, int64, float64) -> {cost: indices of the best path's edges}.");
  m.def("solve_units", &solve_unit_arrays, py::arg("num_nodes"), py::arg("start").noconvert(),
        py::arg("end").noconvert(), py::arg("error").noconvert(), py::arg("finals").noconvert(), py::arg("objective"),
        "Arrays of one entry an edge (int32, int32, float64), each edge of cost one, and the nodes where paths may end "
        "(int32) -> (cost [paths], first [paths + 1], edges): path i takes edges[first[i]:first[i + 1]].");
}
