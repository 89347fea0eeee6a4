// Entry points of the kernels of distances between vectors: every argument is checked here.
#pragma once
#include "checks.h"
#include "points.h"

namespace {

template <class T> Points<const T> points(const char* name, const py::array& a, int64_t number, int64_t features) {
  Points<const T> out{nullptr, number, features, 0};
  out.data = matrix<T>(name, a, number, features, out.stride);
  return out;
}

template <class T> Points<T> points_out(const char* name, py::array& a, int64_t number, int64_t features) {
  Points<T> out{nullptr, number, features, 0};
  out.data = writable<T>(name, a, number, features, out.stride);
  return out;
}

// A matrix whose own shape is what the others are measured by.
template <class T> Points<const T> first_points(const char* name, const py::array& a) {
  if (a.ndim() != 2) throw py::value_error(std::string(name) + ": expected 2 dimensions, got shape " + shape_of(a));
  return points<T>(name, a, a.shape(0), a.shape(1));
}

int64_t rows_of(const char* name, const py::array& a, int dimension) {
  if (a.ndim() != 2) throw py::value_error(std::string(name) + ": expected 2 dimensions, got shape " + shape_of(a));
  return a.shape(dimension);
}

Between between_named(const std::string& kind) {
  if (kind == "lp") return Between::lp;
  if (kind == "jensen_shannon") return Between::jensen_shannon;
  throw py::value_error("kind: expected lp or jensen_shannon, got " + kind);
}

void check_numbers(double p, int threads) {
  if (!(p > 0)) throw py::value_error("p: expected a number above 0, got " + std::to_string(p));
  if (threads < 1 || threads > 1024)
    throw py::value_error("threads: expected 1 to 1024, got " + std::to_string(threads));
}

template <class T>
void distances(const VectorKernels& kernels, const std::string& kind, double p, int threads, const py::array& x,
               const py::array& yt, py::array& out) {
  const Between between = between_named(kind);
  check_numbers(p, threads);
  const Points<const T> rows = first_points<T>("x", x);
  const Points<const T> columns = points<T>("yt", yt, rows.features, rows_of("yt", yt, 1));
  const Points<T> result = points_out<T>("out", out, rows.number, columns.features);
  py::gil_scoped_release release;
  kernels.of<T>().distances(between, p, rows, columns, result, threads);
}

template <class T>
void distance_grads(const VectorKernels& kernels, const std::string& kind, double p, int threads, const py::array& x,
                    const py::array& y, const py::array& d, const py::array& g, py::array& out) {
  const Between between = between_named(kind);
  check_numbers(p, threads);
  const Points<const T> rows = first_points<T>("x", x);
  const Points<const T> others = points<T>("y", y, rows_of("y", y, 0), rows.features);
  const Points<const T> values = points<T>("d", d, rows.number, others.number);
  const Points<const T> by_value = points<T>("g", g, rows.number, others.number);
  const Points<T> result = points_out<T>("out", out, rows.number, rows.features);
  py::gil_scoped_release release;
  kernels.of<T>().distance_grads(between, p, rows, others, values, by_value, result, threads);
}

// Rows of triplets as Python passes them.
struct TripletArguments {
  py::array anchor, positive, negative;
  double p, margin, eps;
  bool swap;
  int threads;
};

template <class T> TripletRows<T> checked(const TripletArguments& a) {
  check_numbers(a.p, a.threads);
  const Points<const T> anchor = first_points<T>("anchor", a.anchor);
  return {anchor,
          points<T>("positive", a.positive, anchor.number, anchor.features),
          points<T>("negative", a.negative, anchor.number, anchor.features),
          a.p, a.margin, a.eps, a.swap, a.threads};
}

template <class T>
void triplet_losses(const VectorKernels& kernels, const TripletArguments& a, py::array& distances, py::array& losses) {
  const TripletRows<T> rows = checked<T>(a);
  const Points<T> between = points_out<T>("distances", distances, a.swap ? 3 : 2, rows.anchor.number);
  T* out = vector_out<T>("losses", losses, rows.anchor.number);
  py::gil_scoped_release release;
  kernels.of<T>().triplet_losses(rows, between, out);
}

template <class T>
void triplet_grads(const VectorKernels& kernels, const TripletArguments& a, const py::array& distances, const py::array& g,
                   Optional& anchor_grad, Optional& positive_grad, Optional& negative_grad) {
  const TripletRows<T> rows = checked<T>(a);
  const int64_t number = rows.anchor.number, features = rows.anchor.features;
  const Points<const T> between = points<T>("distances", distances, a.swap ? 3 : 2, number);
  const T* by_loss = vector<T>("g", g, number);
  auto wanted = [&](const char* name, Optional& out) {
    return out ? points_out<T>(name, *out, number, features) : Points<T>{nullptr, number, features, 0};
  };
  const Points<T> anchor = wanted("anchor_grad", anchor_grad), positive = wanted("positive_grad", positive_grad),
                  negative = wanted("negative_grad", negative_grad);
  py::gil_scoped_release release;
  kernels.of<T>().triplet_grads(rows, between, by_loss, anchor, positive, negative);
}

#define TRIPLETS \
  py::array anchor, py::array positive, py::array negative, double p, double margin, double eps, bool swap, int threads
#define TRIPLET_ARGUMENTS TripletArguments { anchor, positive, negative, p, margin, eps, swap, threads }

template <class Active> void define_vectors(py::module_& m, Active kernels) {
  auto doubles = [](const py::array& a) { return py::isinstance<py::array_t<double>>(a); };
  m.def("distances", [=](std::string kind, double p, int threads, py::array x, py::array yt, py::array out) {
    (doubles(x) ? distances<double> : distances<float>)(kernels(), kind, p, threads, x, yt, out);
  });
  m.def("distance_grads", [=](std::string kind, double p, int threads, py::array x, py::array y, py::array d, py::array g,
                              py::array out) {
    (doubles(x) ? distance_grads<double> : distance_grads<float>)(kernels(), kind, p, threads, x, y, d, g, out);
  });
  m.def("triplet_losses", [=](TRIPLETS, py::array distances, py::array losses) {
    (doubles(anchor) ? triplet_losses<double> : triplet_losses<float>)(kernels(), TRIPLET_ARGUMENTS, distances, losses);
  });
  m.def("triplet_grads", [=](TRIPLETS, py::array distances, py::array g, Optional anchor_grad, Optional positive_grad,
                             Optional negative_grad) {
    (doubles(anchor) ? triplet_grads<double> : triplet_grads<float>)(kernels(), TRIPLET_ARGUMENTS, distances, g, anchor_grad,
                                                                     positive_grad, negative_grad);
  });
}

}  // namespace
