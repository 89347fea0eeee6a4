// Kernels of metric_kernels/ordered.py: one block a row, with its list, or a part of it, in shared memory.
//
// A thread holds a few columns at a time in registers. What lies between lists and columns is a sum over the parts of a list,
// so that lists of any length are taken part by part.
#pragma once
#include "../costs.h"
#include "block.cuh"

namespace {

// Columns that a thread holds, and a block.
constexpr int HELD = 8;
constexpr int64_t TILE = HELD * cuda::THREADS;
// Lists of up to so many values are compared value by value, longer ones searched. Not measured on a GPU yet.
constexpr int SHORT = 32, LONG = 2048;
constexpr int PAIRED = 256;

// Some columns of a row as a thread holds them, HELD of them from j0 on.
template <class T> struct Columns {
  T u[HELD];  // sign * v - margin; inf, which is below nothing, for all but negatives
  bool negative[HELD];
  int spoiled = 0;  // whether a value is NaN

  __device__ Columns(const Values<T>& tile, int64_t i, int64_t j0, T sign, T margin) {
    const T* v = tile.v + i * tile.stride;
    const int64_t label = tile.labels[i];
    for (int h = 0; h < HELD; ++h) {
      const int64_t j = number(j0, h);
      negative[h] = j < tile.n && tile.ref_labels[j] != label;
      const T value = j < tile.n ? v[j] : T(0);
      u[h] = negative[h] ? sign * value - margin : std::numeric_limits<T>::infinity();
      spoiled |= value != value;
    }
  }
  static __device__ int64_t number(int64_t j0, int h) { return j0 + h * cuda::THREADS + threadIdx.x; }
};

// A part of a sorted list in shared memory.
template <class T, int LENGTH> struct Part {
  T list[LENGTH];
  double sums[LENGTH + 1];  // of the c largest values, at [c]
  int with[LENGTH];         // columns with c values above them, at [length - c]
  int length;

  __device__ void take(const T* values, int64_t number) {
    __syncthreads();
    if (threadIdx.x == 0) length = int(number), sums[0] = 0;
    for (int k = threadIdx.x; k < number; k += cuda::THREADS) {
      list[k] = values[k], with[k] = 0;
      sums[number - k] = double(values[k]);
    }
    __syncthreads();
    accumulate(sums + 1, int(number));
  }

  // Neither -inf in the list nor NaN in u is above or below anything.
  __device__ int above(T u) const {
    if (!(u < list[length - 1])) return 0;
    if constexpr (LENGTH <= SHORT) {
      int number = 0;
      for (int k = 0; k < length; ++k) number += list[k] > u;
      return number;
    }
    int low = 0, high = length;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (list[middle] > u) high = middle;
      else low = middle + 1;
    }
    return length - low;
  }

  // Adds, for each value, the number of columns below it.
  __device__ void hand_on(int64_t* below) {
    __syncthreads();
    accumulate(with, length);
    for (int k = threadIdx.x; k < length; k += cuda::THREADS) {
      add_shared(below + k, with[k]);
      with[k] = 0;
    }
    __syncthreads();
  }
};

// Goes through the columns of a row: in_part(part, u, c) for each column and part of the list with c values above u there, and
// column(j, c) for each column with c in all. Returns whether a value of the row is NaN.
template <class T, int LENGTH, class InPart, class Column>
__device__ int sweep(const Values<T>& tile, int64_t i, T sign, const Lists<T>& lists, T margin, int64_t* below,
                     Part<T, LENGTH>& part, InPart in_part, Column column) {
  const T* list = lists.values + lists.which[i] * lists.stride;
  int64_t* own_below = below ? below + lists.which[i] * lists.length : nullptr;
  int spoiled = 0;
  for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
    const Columns<T> columns(tile, i, j0, sign, margin);
    int64_t c[HELD] = {};
    spoiled |= columns.spoiled;
    for (int64_t k0 = 0; k0 < lists.length; k0 += LENGTH) {
      const bool whole = lists.length <= LENGTH;
      if (j0 == 0 || !whole) part.take(list + k0, min(int64_t(LENGTH), lists.length - k0));
      for (int h = 0; h < HELD; ++h) {
        const int number = part.above(columns.u[h]);
        if (!number) continue;
        c[h] += number;
        in_part(part, columns.u[h], number);
        if (below) atomicAdd(part.with + part.length - number, 1);
      }
      if (below && (!whole || j0 + TILE >= tile.n)) part.hand_on(own_below + k0);
    }
    for (int h = 0; h < HELD; ++h)
      if (c[h]) column(columns.number(j0, h), c[h]);
  }
  return spoiled;
}

// Whether row i has a list, which only the GPU can know without waiting for it.
template <class T> __device__ bool listed(const Lists<T>& lists, int64_t i) {
  return lists.which[i] >= 0 && lists.which[i] < lists.number;
}

template <class T, int LENGTH>
__global__ void rank_rows(Values<T> tile, T sign, Lists<T> lists, T margin, double* totals, int64_t* counts, int64_t* below) {
  __shared__ Part<T, LENGTH> part;
  const int64_t i = blockIdx.x;
  double total = 0;
  int64_t count = 0;
  int spoiled = !listed(lists, i);
  if (!spoiled)
    spoiled = sweep(
        tile, i, sign, lists, margin, below, part,
        [&](const Part<T, LENGTH>& of, T u, int c) { total += of.sums[c] - double(c) * double(u), count += c; },
        [](int64_t, int64_t) {});
  total = summed(total);
  count = summed(count);
  spoiled = summed(spoiled);
  if (threadIdx.x) return;
  totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
  counts[i] += count;
}

template <class T, int LENGTH>
__global__ void rank_grad_rows(Values<T> tile, T sign, Lists<T> lists, T margin, const T* scale, T* g, int64_t g_stride,
                               int64_t* below) {
  __shared__ Part<T, LENGTH> part;
  const int64_t i = blockIdx.x;
  if (!listed(lists, i)) return;
  const T factor = -sign * scale[i];
  T* out = g + i * g_stride;
  sweep(tile, i, sign, lists, margin, below, part, [](const Part<T, LENGTH>&, T, int) {},
        [&](int64_t j, int64_t c) { out[j] += factor * T(c); });
}

// Other shapes than the hinge: every pair of a value of the list and a negative.

template <Shape shape, class T> __device__ bool counted(T gap, const Cost<T>& of) {
  const T value = cost<shape>(gap);
  return (value > of.low) & (value < of.high);
}

// -inf stands for no value.
template <class T> __device__ bool missing(T value) { return value == -std::numeric_limits<T>::infinity(); }

template <Shape shape, class T>
__global__ void sum_rows(Values<T> tile, T sign, Lists<T> lists, T margin, Cost<T> of, double* totals, int64_t* counts) {
  __shared__ T list[PAIRED];
  const int64_t i = blockIdx.x;
  Sum<T> total;
  int64_t count = 0;
  int spoiled = 0;
  for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
    const Columns<T> columns(tile, i, j0, sign, margin);
    spoiled |= columns.spoiled;
    for (int64_t k0 = 0; k0 < lists.length; k0 += PAIRED) {
      const int length = int(min(int64_t(PAIRED), lists.length - k0));
      __syncthreads();
      for (int k = threadIdx.x; k < length; k += cuda::THREADS) list[k] = lists.values[i * lists.stride + k0 + k];
      __syncthreads();
      for (int h = 0; h < HELD; ++h) {
        if (!columns.negative[h]) continue;
        for (int k = 0; k < length; ++k) {
          const T gap = list[k] - columns.u[h];
          if (missing(list[k]) || !counted<shape>(gap, of)) continue;
          total.add(cost<shape>(gap));
          ++count;
        }
      }
    }
  }
  const double sum = summed(total.value());
  count = summed(count);
  spoiled = summed(spoiled);
  if (threadIdx.x) return;
  totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : sum;
  counts[i] += count;
}

// First the gradients of the negatives, each by its thread, then those of the values of the list, one after another.
template <Shape shape, class T>
__global__ void sum_grad_rows(Values<T> tile, T sign, Lists<T> lists, T margin, Cost<T> of, const T* scale, T* g,
                              int64_t g_stride, double* slopes) {
  const int64_t i = blockIdx.x;
  const T* list = lists.values + i * lists.stride;
  const T factor = -sign * scale[i];
  // The slope of the pair of a value and a negative, 0 where it does not count.
  const auto slope_at = [&](T value, T u) {
    const T gap = value - u;
    return !missing(value) && counted<shape>(gap, of) ? slope<shape>(gap) : T(0);
  };
  for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
    const Columns<T> columns(tile, i, j0, sign, margin);
    for (int h = 0; h < HELD; ++h) {
      if (!columns.negative[h]) continue;
      Sum<T> sum;
      for (int64_t k = 0; k < lists.length; ++k) sum.add(slope_at(list[k], columns.u[h]));
      g[i * g_stride + columns.number(j0, h)] += factor * T(sum.value());
    }
  }
  for (int64_t k = 0; k < lists.length; ++k) {
    if (missing(list[k])) continue;
    Sum<T> sum;
    for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
      const Columns<T> columns(tile, i, j0, sign, margin);
      for (int h = 0; h < HELD; ++h)
        if (columns.negative[h]) sum.add(slope_at(list[k], columns.u[h]));
    }
    const double all = summed(sum.value());
    if (threadIdx.x == 0) slopes[i * lists.length + k] += all;
  }
}

// A negative of a row, or none.
template <class T> struct Negative {
  T u;
  int64_t column;
};

// The one with the smaller u, the first of equals.
template <class T> __device__ Negative<T> smaller(const Negative<T>& a, const Negative<T>& b) {
  if (a.column < 0 || b.column < 0) return a.column < 0 ? b : a;
  if (a.u == b.u) return a.column < b.column ? a : b;
  return b.u < a.u ? b : a;
}

template <class T> __global__ void nearest_rows(Values<T> tile, T sign, Lists<T> lists, int64_t* columns) {
  const int64_t i = blockIdx.x, label = tile.labels[i];
  const T* list = lists.values + i * lists.stride;
  const T* v = tile.v + i * tile.stride;
  const auto each_negative = [&](auto visit) {
    for (int64_t j = threadIdx.x; j < tile.n; j += cuda::THREADS)
      if (tile.ref_labels[j] != label) visit(Negative<T>{sign * v[j], j});
  };
  const auto combine = [](const Negative<T>& a, const Negative<T>& b) { return smaller(a, b); };
  Negative<T> farthest{T(0), -1};
  each_negative([&](const Negative<T>& one) { farthest = smaller(farthest, {-one.u, one.column}); });
  farthest = reduced(farthest, combine);
  for (int64_t k = 0; k < lists.length; ++k) {
    Negative<T> best{T(0), -1};
    each_negative([&](const Negative<T>& one) {
      if (one.u > list[k]) best = smaller(best, one);
    });
    best = reduced(best, combine);
    if (threadIdx.x == 0) columns[i * lists.length + k] = best.column < 0 ? farthest.column : best.column;
  }
}

}  // namespace

namespace cuda {

template <class T>
void OrderedKernels<T>::ranks(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists, T margin,
                              double* totals, int64_t* counts, int64_t* below) {
  const auto kernel = lists.length <= SHORT ? rank_rows<T, SHORT> : rank_rows<T, LONG>;
  launch(stream, block_each(tile.m), kernel, tile, sign, lists, margin, totals, counts, below);
}

template <class T>
void OrderedKernels<T>::rank_grads(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists, T margin,
                                   const T* scale, T* g, int64_t g_stride, int64_t* below) {
  const auto kernel = lists.length <= SHORT ? rank_grad_rows<T, SHORT> : rank_grad_rows<T, LONG>;
  launch(stream, block_each(tile.m), kernel, tile, sign, lists, margin, scale, g, g_stride, below);
}

template <class T>
void OrderedKernels<T>::sums(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists, T margin,
                             const Cost<T>& of, double* totals, int64_t* counts) {
  with_shape<T>(of.shape, [&](auto shape) {
    launch(stream, block_each(tile.m), sum_rows<shape, T>, tile, sign, lists, margin, of, totals, counts);
  });
}

template <class T>
void OrderedKernels<T>::sum_grads(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists, T margin,
                                  const Cost<T>& of, const T* scale, T* g, int64_t g_stride, double* slopes) {
  with_shape<T>(of.shape, [&](auto shape) {
    launch(stream, block_each(tile.m), sum_grad_rows<shape, T>, tile, sign, lists, margin, of, scale, g, g_stride, slopes);
  });
}

template <class T>
void OrderedKernels<T>::nearest(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists,
                                int64_t* columns) {
  launch(stream, block_each(tile.m), nearest_rows<T>, tile, sign, lists, columns);
}

}  // namespace cuda
