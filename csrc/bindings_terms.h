// Entry points of the kernels of terms: every argument is checked here.
#pragma once
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "checks.h"
#include "terms.h"
#include "transpose.h"

namespace {

bool holds_doubles(const py::array& v) { return py::isinstance<py::array_t<double>>(v); }

// A tile of pair values as Python passes it.
struct ValuesArguments {
  py::array v, labels, ref_labels;
  int64_t diagonal;
  int threads;
};

template <class T> Values<T> checked(const ValuesArguments& a) {
  if (a.v.ndim() != 2) throw py::value_error("v: expected 2 dimensions, got shape " + shape_of(a.v));
  Values<T> tile{};
  tile.m = a.v.shape(0), tile.n = a.v.shape(1);
  tile.v = matrix<T>("v", a.v, tile.m, tile.n, tile.stride);
  tile.labels = vector<int64_t>("labels", a.labels, tile.m);
  tile.ref_labels = vector<int64_t>("ref_labels", a.ref_labels, tile.n);
  if (a.diagonal < -1 || a.diagonal > tile.n)
    throw py::value_error("diagonal: expected -1 or a column, got " + std::to_string(a.diagonal));
  if (a.threads < 1 || a.threads > 1024)
    throw py::value_error("threads: expected 1 to 1024, got " + std::to_string(a.threads));
  tile.diagonal = a.diagonal, tile.threads = a.threads;
  return tile;
}

// The lists, and for each of m rows the number of its own.
template <class T> Lists<T> checked_lists(const py::array& lists, const py::array& which, int64_t m) {
  if (lists.ndim() != 2) throw py::value_error("lists: expected 2 dimensions, got shape " + shape_of(lists));
  Lists<T> out{};
  out.number = lists.shape(0), out.length = lists.shape(1);
  out.values = matrix<T>("lists", lists, out.number, out.length, out.stride);
  out.which = vector<int64_t>("which", which, m);
  if (out.length > std::numeric_limits<int32_t>::max() / 2)
    throw py::value_error("lists: expected fewer than 2**30 values each, got " + std::to_string(out.length));
  for (int64_t i = 0; i < m; ++i)
    if (out.which[i] < 0 || out.which[i] >= out.number)
      throw py::value_error("which: expected 0 to " + std::to_string(out.number - 1) + ", got " + std::to_string(out.which[i]));
  return out;
}

// A list for each of m rows.
template <class T> Lists<T> checked_own_lists(const py::array& lists, int64_t m) {
  if (lists.ndim() != 2) throw py::value_error("lists: expected 2 dimensions, got shape " + shape_of(lists));
  Lists<T> out{};
  out.number = m, out.length = lists.shape(1);
  out.values = matrix<T>("lists", lists, m, out.length, out.stride);
  return out;
}

template <class T> T* whole(const char* name, py::array& a, int64_t rows, int64_t columns) {
  int64_t stride;
  T* data = writable<T>(name, a, rows, columns, stride);
  if (rows > 1 && stride != columns) throw py::value_error(std::string(name) + ": expected contiguous data");
  return data;
}

// None where nobody wants to know.
using Counted = std::optional<py::array>;

Shape shape_named(const std::string& name) {
  if (name == "hinge") return Shape::hinge;
  if (name == "squared_hinge") return Shape::squared_hinge;
  if (name == "softplus") return Shape::softplus;
  throw py::value_error("shape: expected hinge, squared_hinge or softplus, got " + name);
}

template <class T> Cost<T> checked_cost(const std::string& shape, double low, double high) {
  if (!std::isfinite(low)) throw py::value_error("low: expected a finite number, got " + std::to_string(low));
  if (std::isnan(high)) throw py::value_error("high: expected a number, got " + std::to_string(high));
  return {shape_named(shape), T(low), T(high)};
}

template <class T>
void ranks(const Terms& terms, const ValuesArguments& a, double sign, const py::array& lists, const py::array& which,
           double margin, py::array& totals, py::array& counts, Counted& below) {
  const Values<T> tile = checked<T>(a);
  const Lists<T> of = checked_lists<T>(lists, which, tile.m);
  double* sum = vector_out<double>("totals", totals, tile.m);
  int64_t* number = vector_out<int64_t>("counts", counts, tile.m);
  int64_t* under = below ? whole<int64_t>("below", *below, of.number, of.length) : nullptr;
  py::gil_scoped_release release;
  terms.ordered<T>().ranks(tile, T(sign), of, T(margin), sum, number, under);
}

template <class T>
void rank_grads(const Terms& terms, const ValuesArguments& a, double sign, const py::array& lists, const py::array& which,
                double margin, const py::array& scale, py::array& g, Counted& below) {
  const Values<T> tile = checked<T>(a);
  const Lists<T> of = checked_lists<T>(lists, which, tile.m);
  const T* factors = vector<T>("scale", scale, tile.m);
  int64_t stride;
  T* out = writable<T>("g", g, tile.m, tile.n, stride);
  int64_t* under = below ? whole<int64_t>("below", *below, of.number, of.length) : nullptr;
  py::gil_scoped_release release;
  terms.ordered<T>().rank_grads(tile, T(sign), of, T(margin), factors, out, stride, under);
}

template <class T>
void sums(const Terms& terms, const ValuesArguments& a, double sign, const py::array& lists,
          double margin, const std::string& shape, double low, double high, py::array& totals, py::array& counts) {
  const Values<T> tile = checked<T>(a);
  const Lists<T> of = checked_own_lists<T>(lists, tile.m);
  double* sum = vector_out<double>("totals", totals, tile.m);
  int64_t* number = vector_out<int64_t>("counts", counts, tile.m);
  const Cost<T> cost = checked_cost<T>(shape, low, high);
  py::gil_scoped_release release;
  terms.ordered<T>().sums(tile, T(sign), of, T(margin), cost, sum, number);
}

template <class T>
void sum_grads(const Terms& terms, const ValuesArguments& a, double sign, const py::array& lists,
               double margin, const std::string& shape, double low, double high, const py::array& scale, py::array& g,
               py::array& slopes) {
  const Values<T> tile = checked<T>(a);
  const Lists<T> of = checked_own_lists<T>(lists, tile.m);
  const T* factors = vector<T>("scale", scale, tile.m);
  int64_t stride;
  T* out = writable<T>("g", g, tile.m, tile.n, stride);
  double* sum = whole<double>("slopes", slopes, of.number, of.length);
  const Cost<T> cost = checked_cost<T>(shape, low, high);
  py::gil_scoped_release release;
  terms.ordered<T>().sum_grads(tile, T(sign), of, T(margin), cost, factors, out, stride, sum);
}

template <class T> py::tuple positives(const Terms& terms, const ValuesArguments& a, double sign) {
  const Values<T> tile = checked<T>(a);
  if (tile.diagonal >= 0 && tile.diagonal + tile.m > tile.n)
    throw py::value_error("diagonal: expected a column for each row, got " + std::to_string(tile.diagonal));
  int64_t length = 0;
  {
    py::gil_scoped_release release;
    length = terms.ordered<T>().most_positives(tile);
  }
  py::array_t<int64_t> columns({tile.m, length});
  py::array_t<T> lists({tile.m, length});
  int64_t* column = columns.mutable_data();
  T* values = lists.mutable_data();
  {
    py::gil_scoped_release release;
    terms.ordered<T>().positives(tile, T(sign), length, column, values);
  }
  return py::make_tuple(columns, lists);
}

template <class T>
void nearest(const Terms& terms, const ValuesArguments& a, double sign, const py::array& lists,
             py::array& columns) {
  const Values<T> tile = checked<T>(a);
  const Lists<T> of = checked_own_lists<T>(lists, tile.m);
  int64_t* out = whole<int64_t>("columns", columns, tile.m, of.length);
  py::gil_scoped_release release;
  terms.ordered<T>().nearest(tile, T(sign), of, out);
}

Nodes checked_nodes(double low, double step, int64_t number, int64_t histograms, int64_t m, bool lone) {
  if (!(step > 0) || !std::isfinite(step))
    throw py::value_error("step: expected a positive number, got " + std::to_string(step));
  if (!std::isfinite(low)) throw py::value_error("low: expected a finite number, got " + std::to_string(low));
  if (number < 2 || number > (1 << 24)) throw py::value_error("nodes: expected 2 to 2**24, got " + std::to_string(number));
  if (histograms != 1 && histograms != m)
    throw py::value_error("histograms: expected 1 or " + std::to_string(m) + ", got " + std::to_string(histograms));
  return {low, step, number, histograms != 1, lone};
}

// Histograms (1 or m, 2 * nodes), the positives of each before its negatives.
template <class T>
void histogram(const Terms& terms, const ValuesArguments& a, double low, double step, bool lone, int bits, py::array& out,
               py::array& spoiled) {
  const Values<T> tile = checked<T>(a);
  if (out.ndim() != 2 || out.shape(1) % 2)
    throw py::value_error("out: expected shape (histograms, 2 * nodes), got " + shape_of(out));
  const Nodes nodes = checked_nodes(low, step, out.shape(1) / 2, out.shape(0), tile.m, lone);
  if (bits < 1 || bits > 50) throw py::value_error("bits: expected 1 to 50, got " + std::to_string(bits));
  int64_t* shares = whole<int64_t>("out", out, out.shape(0), out.shape(1));
  bool* flags = vector_out<bool>("spoiled", spoiled, tile.m);
  py::gil_scoped_release release;
  terms.binned<T>().histogram(tile, nodes, bits, shares, flags);
}

template <class T>
void histogram_grads(const Terms& terms, const ValuesArguments& a, double low, double step, bool lone,
                     const py::array& tables, py::array& g) {
  const Values<T> tile = checked<T>(a);
  if (tables.ndim() != 2 || tables.shape(1) % 2)
    throw py::value_error("tables: expected shape (histograms, 2 * nodes), got " + shape_of(tables));
  const Nodes nodes = checked_nodes(low, step, tables.shape(1) / 2, tables.shape(0), tile.m, lone);
  int64_t table_stride, stride;
  const T* slopes = matrix<T>("tables", tables, tables.shape(0), tables.shape(1), table_stride);
  if (tables.shape(0) > 1 && table_stride != tables.shape(1)) throw py::value_error("tables: expected contiguous data");
  T* out = writable<T>("g", g, tile.m, tile.n, stride);
  py::gil_scoped_release release;
  terms.binned<T>().histogram_grads(tile, nodes, slopes, out, stride);
}

template <class T> void transpose_added(py::array& a, int threads) {
  if (a.ndim() != 2) throw py::value_error("a: expected 2 dimensions, got shape " + shape_of(a));
  int64_t stride;
  T* data = writable<T>("a", a, a.shape(0), a.shape(0), stride);
  if (threads < 1 || threads > 1024) throw py::value_error("threads: expected 1 to 1024, got " + std::to_string(threads));
  const int64_t n = a.shape(0);
  py::gil_scoped_release release;
  add_transposed(data, n, stride, threads);
}

#define VALUES py::array v, py::array labels, py::array ref_labels, int64_t diagonal, int threads
#define VALUES_ARGUMENTS ValuesArguments { v, labels, ref_labels, diagonal, threads }
#define LISTS double sign, py::array lists, py::array which
#define COST double margin, std::string shape, double low, double high
#define BY_TYPE(call) (holds_doubles(v) ? call<double> : call<float>)

template <class Active> void define_terms(py::module_& m, Active terms) {
  m.def("add_transposed", [](py::array a, int threads) {
    (holds_doubles(a) ? transpose_added<double> : transpose_added<float>)(a, threads);
  });
  m.def("ranks", [terms](VALUES, LISTS, double margin, py::array totals, py::array counts, Counted below) {
    BY_TYPE(ranks)(terms(), VALUES_ARGUMENTS, sign, lists, which, margin, totals, counts, below);
  });
  m.def("rank_grads", [terms](VALUES, LISTS, double margin, py::array scale, py::array g, Counted below) {
    BY_TYPE(rank_grads)(terms(), VALUES_ARGUMENTS, sign, lists, which, margin, scale, g, below);
  });
  m.def("sums", [terms](VALUES, double sign, py::array lists, COST, py::array totals, py::array counts) {
    BY_TYPE(sums)(terms(), VALUES_ARGUMENTS, sign, lists, margin, shape, low, high, totals, counts);
  });
  m.def("sum_grads", [terms](VALUES, double sign, py::array lists, COST, py::array scale, py::array g, py::array slopes) {
    BY_TYPE(sum_grads)(terms(), VALUES_ARGUMENTS, sign, lists, margin, shape, low, high, scale, g, slopes);
  });
  m.def("positives", [terms](VALUES, double sign) {
    return BY_TYPE(positives)(terms(), VALUES_ARGUMENTS, sign);
  });
  m.def("nearest", [terms](VALUES, double sign, py::array lists, py::array columns) {
    BY_TYPE(nearest)(terms(), VALUES_ARGUMENTS, sign, lists, columns);
  });
  m.def("histogram", [terms](VALUES, double low, double step, bool lone, int bits, py::array out, py::array spoiled) {
    BY_TYPE(histogram)(terms(), VALUES_ARGUMENTS, low, step, lone, bits, out, spoiled);
  });
  m.def("histogram_grads", [terms](VALUES, double low, double step, bool lone, py::array tables, py::array g) {
    BY_TYPE(histogram_grads)(terms(), VALUES_ARGUMENTS, low, step, lone, tables, g);
  });
}

#undef VALUES
#undef VALUES_ARGUMENTS
#undef LISTS
#undef COST
#undef BY_TYPE

}  // namespace
