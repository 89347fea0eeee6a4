// The Python module metric_kernels._cuda. Arrays come as addresses, sizes and strides, which metric_kernels/backends/cuda.py has
// checked; numbers are checked here. Needs neither nvcc nor torch.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../formula_info.h"
#include "kernels.h"

namespace {

using Address = uintptr_t;
// Device and handle.
using Queue = std::tuple<int, Address>;
// Address and row stride.
using Matrix = std::tuple<Address, int64_t>;
// Pair values, rows, columns, labels of both sides, diagonal.
using ValuesGiven = std::tuple<Matrix, int64_t, int64_t, Address, Address, int64_t>;
// Values, number of lists, length, the list of each row.
using ListsGiven = std::tuple<Matrix, int64_t, int64_t, Address>;
// Order, first, number.
using MembersGiven = std::tuple<Address, Address, Address>;
// Order, place, first, number.
using PairsGiven = std::tuple<Address, Address, Address, Address>;
// Values, first, number, whether they are sorted.
using SegmentsGiven = std::tuple<Address, Address, Address, bool>;
// Products, rows, columns, metric, squared norms of both sides, eps.
using ProductsGiven = std::tuple<Matrix, int64_t, int64_t, int, Address, Address, double>;
// Statistics, gradients with respect to them, columns of extremes.
using SideGiven = std::tuple<Matrix, Matrix, Matrix>;
// Formula, products, labels of both sides, number of the first row, diagonal, parameters, the two sides.
using RowsGiven =
    std::tuple<int, ProductsGiven, Address, Address, int64_t, int64_t, std::vector<double>, SideGiven, SideGiven>;
// Shape, low, high.
using CostGiven = std::tuple<std::string, double, double>;

template <class T> T* at(Address address) { return reinterpret_cast<T*>(address); }
template <class T> T* start(const Matrix& m) { return at<T>(std::get<0>(m)); }
int64_t stride(const Matrix& m) { return std::get<1>(m); }
gpu::Stream on(const Queue& q) { return {std::get<0>(q), std::get<1>(q)}; }

void check_diagonal(int64_t diagonal, int64_t columns) {
  if (diagonal < -1 || diagonal > columns)
    throw py::value_error("diagonal: expected -1 or a column, got " + std::to_string(diagonal));
}

template <class T> Values<T> tile_of(const ValuesGiven& given) {
  const auto& [v, m, n, labels, ref_labels, diagonal] = given;
  check_diagonal(diagonal, n);
  if (n > std::numeric_limits<int32_t>::max())
    throw py::value_error("columns: expected fewer than 2**31, got " + std::to_string(n));
  return {start<const T>(v), m, n, stride(v), at<const int64_t>(labels), at<const int64_t>(ref_labels), diagonal, 1};
}

template <class T> Lists<T> lists_of(const ListsGiven& given) {
  const auto& [values, number, length, which] = given;
  return {start<const T>(values), number, length, stride(values), at<const int64_t>(which)};
}

gpu::Members members_of(const MembersGiven& given) {
  const auto& [order, first, number] = given;
  return {at<const int64_t>(order), at<const int64_t>(first), at<const int64_t>(number)};
}

gpu::Pairs pairs_of(const PairsGiven& given) {
  const auto& [order, place, first, number] = given;
  return {at<const int64_t>(order), at<const int64_t>(place), at<const int64_t>(first), at<const int64_t>(number)};
}

template <class T> gpu::Segments<T> segments_of(const SegmentsGiven& given) {
  const auto& [values, first, number, sorted] = given;
  return {at<const T>(values), at<const int64_t>(first), at<const int64_t>(number), sorted};
}

template <class T> Tile<T> tile_of(const ProductsGiven& given) {
  const auto& [s, m, n, metric, p, q, eps] = given;
  check_metric(metric);
  Tile<T> tile{};
  tile.s = start<T>(s), tile.m = m, tile.n = n, tile.stride = stride(s);
  tile.metric = metric, tile.p = at<const T>(p), tile.q = at<const T>(q), tile.eps = T(eps);
  return tile;
}

template <class T> Side<T> side_of(const SideGiven& given) {
  const auto& [values, grads, index] = given;
  return {start<const T>(values), stride(values), start<const T>(grads), stride(grads), start<const int64_t>(index), stride(index)};
}

template <class T> Output<T> output_of(const Matrix& values, const Matrix& index, const Matrix& scale) {
  return {start<T>(values), stride(values), start<int64_t>(index), stride(index), start<T>(scale), stride(scale)};
}

template <class T> gpu::RowArguments<T> rows_of(const Queue& queue, const RowsGiven& given) {
  const auto& [formula, products, labels, ref_labels, row, diagonal, params, rows, cols] = given;
  size_t expected = 0;
  for (const StageInfo& stage : formula_info(formula).stages) expected += stage.params;
  if (params.size() != expected)
    throw py::value_error("params: expected " + std::to_string(expected) + " numbers, got " + std::to_string(params.size()));
  gpu::RowArguments<T> out{on(queue), tile_of<T>(products), params, side_of<T>(rows), side_of<T>(cols)};
  check_diagonal(diagonal, out.tile.n);
  out.tile.labels = at<const int64_t>(labels), out.tile.ref_labels = at<const int64_t>(ref_labels);
  out.tile.row = row, out.tile.diagonal = diagonal;
  return out;
}

template <class T> Cost<T> cost_of(const CostGiven& given) {
  const auto& [shape, low, high] = given;
  if (!std::isfinite(low)) throw py::value_error("low: expected a finite number, got " + std::to_string(low));
  if (std::isnan(high)) throw py::value_error("high: expected a number, got " + std::to_string(high));
  if (shape == "hinge") return {Shape::hinge, T(low), T(high)};
  if (shape == "squared_hinge") return {Shape::squared_hinge, T(low), T(high)};
  if (shape == "softplus") return {Shape::softplus, T(low), T(high)};
  throw py::value_error("shape: expected hinge, squared_hinge or softplus, got " + shape);
}

Nodes nodes_of(double low, double step, int64_t number, bool per_anchor, bool lone) {
  if (!(step > 0) || !std::isfinite(step)) throw py::value_error("step: expected a positive number, got " + std::to_string(step));
  if (!std::isfinite(low)) throw py::value_error("low: expected a finite number, got " + std::to_string(low));
  if (number < 2 || number > (1 << 24)) throw py::value_error("nodes: expected 2 to 2**24, got " + std::to_string(number));
  return {low, step, number, per_anchor, lone};
}

template <class T> void define_values(py::module_ m) {
  using Kernels = gpu::PairValues<T>;
  m.def("pair_values", [](Queue queue, ProductsGiven products, Matrix out) {
    Kernels::values(on(queue), tile_of<T>(products), start<T>(out), stride(out));
  });
  m.def("pair_slopes", [](Queue queue, ProductsGiven products, Matrix g, Address norm_grad) {
    Kernels::slopes(on(queue), tile_of<T>(products), start<const T>(g), stride(g), at<T>(norm_grad));
  });
  m.def("add_transposed", [](Queue queue, Matrix matrix, int64_t n) {
    Kernels::add_transposed(on(queue), start<T>(matrix), n, stride(matrix));
  });
  m.def("mirror", [](Queue queue, Matrix matrix, int64_t n) {
    Kernels::mirror(on(queue), start<T>(matrix), n, stride(matrix));
  });
}

template <class T> void define_ordered(py::module_ m) {
  using Kernels = gpu::OrderedKernels<T>;
  m.def("ranks", [](Queue queue, ValuesGiven tile, double sign, ListsGiven lists, double margin, Address totals,
                    Address counts, Address below) {
    Kernels::ranks(on(queue), tile_of<T>(tile), T(sign), lists_of<T>(lists), T(margin), at<double>(totals),
                   at<int64_t>(counts), at<int64_t>(below));
  });
  m.def("rank_grads", [](Queue queue, ValuesGiven tile, double sign, ListsGiven lists, double margin, Address scale, Matrix g,
                         Address below) {
    Kernels::rank_grads(on(queue), tile_of<T>(tile), T(sign), lists_of<T>(lists), T(margin), at<const T>(scale), start<T>(g),
                        stride(g), at<int64_t>(below));
  });
  m.def("triplets", [](Queue queue, ValuesGiven tile, double sign, MembersGiven members, double margin, Address totals,
                       Address counts) {
    Kernels::triplets(on(queue), tile_of<T>(tile), T(sign), members_of(members), T(margin), at<double>(totals),
                      at<int64_t>(counts));
  });
  m.def("triplet_grads", [](Queue queue, ValuesGiven tile, double sign, MembersGiven members, double margin, Address scale,
                            Matrix g) {
    Kernels::triplet_grads(on(queue), tile_of<T>(tile), T(sign), members_of(members), T(margin), at<const T>(scale),
                           start<T>(g), stride(g));
  });
  m.def("triplet_sums", [](Queue queue, ValuesGiven tile, double sign, MembersGiven members, double margin, CostGiven cost,
                           Address totals, Address counts) {
    Kernels::triplet_sums(on(queue), tile_of<T>(tile), T(sign), members_of(members), T(margin), cost_of<T>(cost),
                          at<double>(totals), at<int64_t>(counts));
  });
  m.def("triplet_sum_grads", [](Queue queue, ValuesGiven tile, double sign, MembersGiven members, double margin,
                                CostGiven cost, Address scale, Matrix g) {
    Kernels::triplet_sum_grads(on(queue), tile_of<T>(tile), T(sign), members_of(members), T(margin), cost_of<T>(cost),
                               at<const T>(scale), start<T>(g), stride(g));
  });
  m.def("semi_hard", [](Queue queue, ValuesGiven tile, double sign, MembersGiven members, double margin, CostGiven cost,
                        Address totals, Address counts) {
    Kernels::semi_hard(on(queue), tile_of<T>(tile), T(sign), members_of(members), T(margin), cost_of<T>(cost),
                       at<double>(totals), at<int64_t>(counts));
  });
  m.def("semi_hard_grads", [](Queue queue, ValuesGiven tile, double sign, MembersGiven members, double margin,
                              CostGiven cost, Address scale, Matrix g) {
    Kernels::semi_hard_grads(on(queue), tile_of<T>(tile), T(sign), members_of(members), T(margin), cost_of<T>(cost),
                             at<const T>(scale), start<T>(g), stride(g));
  });
  m.def("nearest", [](Queue queue, ValuesGiven tile, double sign, ListsGiven lists, Address columns) {
    Kernels::nearest(on(queue), tile_of<T>(tile), T(sign), lists_of<T>(lists), at<int64_t>(columns));
  });
}

template <class T> void define_pairs(py::module_ m) {
  using Kernels = gpu::PairKernels<T>;
  m.def("positive_values", [](Queue queue, ValuesGiven tile, double sign, PairsGiven pairs, Address values) {
    Kernels::values(on(queue), tile_of<T>(tile), T(sign), pairs_of(pairs), at<T>(values));
  });
  m.def("sort", [](Queue queue, Address values, Address total, int64_t room, Address sorted, Address other) {
    Kernels::sort(on(queue), at<const T>(values), at<const int64_t>(total), room, at<T>(sorted), at<T>(other));
  });
  m.def("segment_ranks", [](Queue queue, ValuesGiven tile, double sign, SegmentsGiven lists, double margin, Address totals,
                            Address counts, Address below) {
    Kernels::ranks(on(queue), tile_of<T>(tile), T(sign), segments_of<T>(lists), T(margin), at<double>(totals),
                   at<int64_t>(counts), at<int64_t>(below));
  });
  m.def("segment_rank_grads", [](Queue queue, ValuesGiven tile, double sign, SegmentsGiven lists, double margin, Address scale,
                                 Matrix g) {
    Kernels::rank_grads(on(queue), tile_of<T>(tile), T(sign), segments_of<T>(lists), T(margin), at<const T>(scale), start<T>(g),
                        stride(g));
  });
  m.def("positive_grads", [](Queue queue, ValuesGiven tile, double sign, PairsGiven pairs, Address values, Address sorted,
                             Address total, Address below, Address own_below, Address scale, Matrix g) {
    Kernels::grads(on(queue), tile_of<T>(tile), T(sign), pairs_of(pairs), at<const T>(values), at<const T>(sorted),
                   at<const int64_t>(total), at<const int64_t>(below), at<const int64_t>(own_below), at<const T>(scale),
                   start<T>(g), stride(g));
  });
}

template <class T> void define_binned(py::module_ m) {
  using Kernels = gpu::BinnedKernels<T>;
  m.def("histogram", [](Queue queue, ValuesGiven tile, double low, double step, int64_t nodes, bool per_anchor, bool lone,
                        int bits, Address out, Address spoiled) {
    if (bits < 1 || bits > 50) throw py::value_error("bits: expected 1 to 50, got " + std::to_string(bits));
    Kernels::histogram(on(queue), tile_of<T>(tile), nodes_of(low, step, nodes, per_anchor, lone), bits, at<int64_t>(out),
                       at<bool>(spoiled));
  });
  m.def("histogram_grads", [](Queue queue, ValuesGiven tile, double low, double step, int64_t nodes, bool per_anchor,
                              bool lone, Address tables, Matrix g) {
    Kernels::histogram_grads(on(queue), tile_of<T>(tile), nodes_of(low, step, nodes, per_anchor, lone), at<const T>(tables),
                             start<T>(g), stride(g));
  });
}

template <class T> void define_rows(py::module_ m) {
  using Kernels = gpu::RowKernels<T>;
  m.def("stats", [](Queue queue, RowsGiven rows, int stage, Matrix values, Matrix index, Matrix scale) {
    stage_info(formula_info(std::get<0>(rows)), stage);
    Kernels::stats(rows_of<T>(queue, rows), std::get<0>(rows), stage, output_of<T>(values, index, scale));
  });
  m.def("weights", [](Queue queue, RowsGiven rows, bool both, Address norm_grad) {
    Kernels::weights(rows_of<T>(queue, rows), std::get<0>(rows), both, at<T>(norm_grad));
  });
  m.def("input_grads", [](Queue queue, RowsGiven rows, int stage, bool swapped, Matrix out) {
    stage_info(formula_info(std::get<0>(rows)), stage);
    Kernels::input_grads(rows_of<T>(queue, rows), std::get<0>(rows), stage, swapped, output_of<T>(out, {}, {}));
  });
}

template <class T> void define(py::module_ m) {
  define_rows<T>(m);
  define_values<T>(m);
  define_ordered<T>(m);
  define_pairs<T>(m);
  define_binned<T>(m);
}

// Why no kernel can run on this machine, in the words of the CUDA runtime.
std::optional<std::string> problem() {
  int devices = 0, newest = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  for (int device = 0; device < devices; ++device) {
    int capability = 0;
    cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
    newest = capability > newest ? capability : newest;
  }
  if (newest < 8) return "no CUDA device of compute capability 8.0 or newer";
  return std::nullopt;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of metric_kernels: a submodule for each type of numbers.";
  define<float>(m.def_submodule("float32"));
  define<double>(m.def_submodule("float64"));
  define_formulas(m);
  m.def("problem", &problem);
  m.attr("runtime") = CUDART_VERSION;
#ifdef CUDA_ON_CPU
  m.attr("device") = "cpu";
#else
  m.attr("device") = "cuda";
#endif
}
