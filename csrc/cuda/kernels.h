// What the CUDA kernels can be asked for. Pointers are those of device memory, sizes and strides are in elements, and every
// call returns as soon as the work is queued on a stream. Nothing here needs nvcc.
#pragma once
#include <cstdint>
#include <vector>

#include "../tile.h"
#include "../values.h"

namespace gpu {

struct Stream {
  int device;
  uintptr_t handle;
};

// See metric_kernels/terms.py. `norm_grad` may be null, and so may `below` further down.
template <class T> struct PairValues {
  static void values(const Stream&, const Tile<T>&, T* out, int64_t out_stride);
  static void slopes(const Stream&, const Tile<T>&, const T* g, int64_t g_stride, T* norm_grad);
  static void add_transposed(const Stream&, T* matrix, int64_t n, int64_t stride);
  static void mirror(const Stream&, T* matrix, int64_t n, int64_t stride);
};

// The columns of a matrix by label, and where the class of each row begins among them, and how many it has.
struct Members {
  const int64_t* order;
  const int64_t* first;
  const int64_t* number;
};

// See metric_kernels/ordered.py.
template <class T> struct OrderedKernels {
  static void ranks(const Stream&, const Values<T>&, T sign, const Lists<T>&, T margin, double* totals, int64_t* counts,
                    int64_t* below);
  static void rank_grads(const Stream&, const Values<T>&, T sign, const Lists<T>&, T margin, const T* scale, T* g,
                         int64_t g_stride, int64_t* below);
  static void triplets(const Stream&, const Values<T>&, T sign, const Members&, T margin, double* totals, int64_t* counts);
  static void triplet_grads(const Stream&, const Values<T>&, T sign, const Members&, T margin, const T* scale, T* g,
                            int64_t g_stride);
  static void triplet_sums(const Stream&, const Values<T>&, T sign, const Members&, T margin, const Cost<T>&, double* totals,
                           int64_t* counts);
  static void triplet_sum_grads(const Stream&, const Values<T>&, T sign, const Members&, T margin, const Cost<T>&,
                                const T* scale, T* g, int64_t g_stride);
  static void semi_hard(const Stream&, const Values<T>&, T sign, const Members&, T margin, const Cost<T>&, double* totals,
                        int64_t* counts);
  static void semi_hard_grads(const Stream&, const Values<T>&, T sign, const Members&, T margin, const Cost<T>&,
                              const T* scale, T* g, int64_t g_stride);
  static void nearest(const Stream&, const Values<T>&, T sign, const Lists<T>&, int64_t* columns);
};

// Where the positive pairs i < j of a batch are, i being a row: `number` of them, at `first` in the array of all pairs. Point i
// has the place `place` among all in the order of labels.
struct Pairs {
  const int64_t* order;
  const int64_t* place;
  const int64_t* first;
  const int64_t* number;
};

// The list of a row is a part of an array.
template <class T> struct Segments {
  const T* values;
  const int64_t* first;
  const int64_t* number;
  bool sorted;
};

// See metric_kernels/quadruplets.py. `own_below` may be null.
template <class T> struct PairKernels {
  static void values(const Stream&, const Values<T>&, T sign, const Pairs&, T* values);
  static void sort(const Stream&, const T* values, const int64_t* total, int64_t room, T* sorted, T* other);
  static void ranks(const Stream&, const Values<T>&, T sign, const Segments<T>&, T margin, double* totals, int64_t* counts,
                    int64_t* below);
  static void rank_grads(const Stream&, const Values<T>&, T sign, const Segments<T>&, T margin, const T* scale, T* g,
                         int64_t g_stride);
  static void grads(const Stream&, const Values<T>&, T sign, const Pairs&, const T* values, const T* sorted,
                    const int64_t* total, const int64_t* below, const int64_t* own_below, const T* scale, T* g,
                    int64_t g_stride);
};

// See metric_kernels/tile.py. Formulas have the numbers of the table that csrc/generate.py prints.
template <class T> struct RowArguments {
  Stream stream;
  Tile<T> tile;
  std::vector<double> params;
  Side<T> rows, cols;
};
template <class T> struct RowKernels {
  static void stats(const RowArguments<T>&, int formula, int stage, const Output<T>&);
  static void weights(const RowArguments<T>&, int formula, bool both, T* norm_grad);
  static void input_grads(const RowArguments<T>&, int formula, int stage, bool swapped, const Output<T>&);
};

// See metric_kernels/binned.py.
template <class T> struct BinnedKernels {
  static void histogram(const Stream&, const Values<T>&, const Nodes&, int bits, int64_t* out, bool* spoiled);
  static void histogram_grads(const Stream&, const Values<T>&, const Nodes&, const T* tables, T* g, int64_t g_stride);
};

}  // namespace gpu
