// What the kernels of pairs of pairs and of histograms are given: a tile of pair values; the C++ form of a ValueTile.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

template <class T> struct Values {
  const T* v;  // (m, n), rows contiguous
  int64_t m, n, stride;
  const int64_t* labels;
  const int64_t* ref_labels;
  int64_t diagonal;
  int threads;
};

// Sorted lists of positive values, -inf first where there are fewer; which[i] is the list of row i.
template <class T> struct Lists {
  const T* values;
  int64_t number, length, stride;
  const int64_t* which;
};

enum class Shape { hinge, squared_hinge, softplus };

// f of a pair counts if low < f < high.
template <class T> struct Cost {
  Shape shape;
  T low, high;
};

template <class T> struct Ordered {
  int64_t (*most_positives)(const Values<T>&);
  void (*positives)(const Values<T>&, T sign, int64_t length, int64_t* columns, T* lists);
  void (*ranks)(const Values<T>&, T sign, const Lists<T>&, T margin, double* totals, int64_t* counts, int64_t* below);
  void (*rank_grads)(const Values<T>&, T sign, const Lists<T>&, T margin, const T* scale, T* g, int64_t g_stride,
                     int64_t* below);
  void (*sums)(const Values<T>&, T sign, const Lists<T>&, T margin, Cost<T>, double* totals, int64_t* counts);
  void (*sum_grads)(const Values<T>&, T sign, const Lists<T>&, T margin, Cost<T>, const T* scale, T* g, int64_t g_stride,
                    double* slopes);
  void (*nearest)(const Values<T>&, T sign, const Lists<T>&, int64_t* columns);
};

struct Nodes {
  double low, step;
  int64_t number;
  bool per_anchor;
  bool lone;  // labels below 0 are of points without a positive, and pairs of two of these count nowhere
};

template <class T> struct Binned {
  void (*histogram)(const Values<T>&, const Nodes&, int bits, int64_t* out, bool* spoiled);
  void (*histogram_grads)(const Values<T>&, const Nodes&, const T* tables, T* g, int64_t g_stride);
};
