// What a kernel is given; the C++ form of metric_kernels/tile.py.
#pragma once
#include <cstdint>

enum class Kind { total, lse, count, largest, smallest };
enum class Where { pos, neg };

template <class T> struct Tile {
  T* s;  // (m, n), rows contiguous
  int64_t m, n, stride;
  const int64_t* labels;
  const int64_t* ref_labels;
  int64_t row, diagonal;
  const T* p;  // (m,) or null
  const T* q;  // (n,) or null
  T eps;
  int metric;
  const T* params;
  int threads;
};

// Statistics of the points of one side: (K, number of points), rows `*_stride` apart.
template <class T> struct Side {
  const T* values;
  int64_t values_stride;
  const T* grads;
  int64_t grads_stride;
  const int64_t* index;
  int64_t index_stride;
};

template <class T> struct Output {
  T* values;
  int64_t values_stride;
  int64_t* index;
  int64_t index_stride;
  T* scale;
  int64_t scale_stride;
};

// The losses that a reducer takes, low < loss < high, and whether it divides their sum by their number.
struct Window {
  double low, high;
  bool mean;
};

template <class T> struct Kernels {
  void (*stats)(int stage, const Tile<T>&, const Side<T>& rows, const Side<T>& cols, const Output<T>& out);
  void (*weights)(const Tile<T>&, const Side<T>& rows, const Side<T>& cols, bool both, T* norm_grad);
  void (*input_grads)(int stage, const Tile<T>&, const Side<T>& rows, const Side<T>& cols, bool swapped,
                      const Output<T>& out);
  double (*reduce)(const Side<T>& rows, int64_t n, const double* params, const Window*, const Output<T>& grads);
};

template <class T> struct Passes {
  void (*values)(const Tile<T>&, T* out, int64_t out_stride);
  void (*slopes)(const Tile<T>&, const T* g, int64_t g_stride, T* norm_grad);
};

struct Formulas {
  const Kernels<float>* single;
  const Kernels<double>* twice;
  Passes<float> passes_single;
  Passes<double> passes_twice;
};
