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
// What shared memory holds of a list that is given, short or not, and of one that is gathered.
constexpr int SHORT = 32, LONG = 2048, GATHERED = 1024;
// Lists of up to so many values are compared value by value, longer ones searched. Not measured on a GPU yet.
constexpr int COMPARED = 8;
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

// Where a row finds its list: among lists that are given and sorted,
template <class T> struct GivenLists {
  static constexpr bool sorted = true, own = false;
  Lists<T> lists;

  // Only the GPU can know, without waiting for it, whether there is such a list.
  __device__ bool there(int64_t i) const { return lists.which[i] >= 0 && lists.which[i] < lists.number; }
  __device__ int64_t length(int64_t) const { return lists.length; }
  // Of a value among numbers that go with all lists.
  __device__ int64_t* place(int64_t* numbers, int64_t i, int64_t k) const {
    return numbers + lists.which[i] * lists.length + k;
  }
  __device__ T value(const Values<T>&, int64_t i, int64_t k) const { return lists.values[lists.which[i] * lists.stride + k]; }
};

// or in its own positives, not sorted.
template <class T> struct OwnPositives {
  static constexpr bool sorted = false, own = true;
  cuda::Members members;
  T sign;

  __device__ bool there(int64_t) const { return true; }
  __device__ int64_t length(int64_t i) const { return members.number[i]; }
  __device__ int64_t column(int64_t i, int64_t k) const { return members.order[members.first[i] + k]; }
  __device__ T value(const Values<T>& tile, int64_t i, int64_t k) const {
    const int64_t j = column(i, k);
    const bool self = tile.diagonal >= 0 && j == tile.diagonal + i;
    return self ? -std::numeric_limits<T>::infinity() : sign * tile.v[i * tile.stride + j];
  }
};

// A part of the list of a row in shared memory, sorted. Values of -inf come first and are above nothing.
template <class Source, class T, int LENGTH> struct Part {
  T list[LENGTH];
  double sums[LENGTH + 1];                     // of the c largest values, at [c]
  int with[LENGTH];                            // columns with c values above them, at [length - c]
  int16_t place[Source::sorted ? 1 : LENGTH];  // where a value was before the part was sorted, -1 for none
  int length;

  __device__ void take(const Source& source, const Values<T>& tile, int64_t i, int64_t from) {
    const int number = int(min(int64_t(LENGTH), source.length(i) - from));
    int size = number;
    if constexpr (!Source::sorted)
      for (size = 1; size < number; size *= 2) {
      }
    __syncthreads();
    for (int k = threadIdx.x; k < size; k += cuda::THREADS) {
      list[k] = k < number ? source.value(tile, i, from + k) : -std::numeric_limits<T>::infinity();
      if constexpr (!Source::sorted) place[k] = int16_t(k < number ? k : -1);
      with[k] = 0;
    }
    if (threadIdx.x == 0) length = size, sums[0] = 0;
    __syncthreads();
    if constexpr (!Source::sorted) sort(size);
    for (int k = threadIdx.x; k < size; k += cuda::THREADS) sums[size - k] = double(list[k]);
    __syncthreads();
    accumulate(sums + 1, size);
  }

  // Bitonic; the size is a power of two.
  __device__ void sort(int size) {
    for (int run = 2; run <= size; run *= 2)
      for (int step = run / 2; step; step /= 2) {
        for (int pair = threadIdx.x; pair < size / 2; pair += cuda::THREADS) {
          const int a = pair / step * 2 * step + pair % step, b = a + step;
          if ((list[b] < list[a]) == ((a & run) == 0) && list[a] != list[b]) {
            const T value = list[a];
            const int16_t from = place[a];
            list[a] = list[b], place[a] = place[b];
            list[b] = value, place[b] = from;
          }
        }
        __syncthreads();
      }
  }

  __device__ int above(T u) const {
    if (!length || !(u < list[length - 1])) return 0;
    int number = 0, low = 0, high = length;
    if (length <= COMPARED) {
      for (int k = 0; k < length; ++k) number += list[k] > u;
      return number;
    }
    while (low < high) {
      const int middle = (low + high) / 2;
      if (list[middle] > u) high = middle;
      else low = middle + 1;
    }
    return length - low;
  }

  // visit(k, number of columns below the value) for each value that has some; k is its place before the part was sorted.
  template <class Visit> __device__ void each_below(Visit visit) {
    __syncthreads();
    accumulate(with, length);
    for (int k = threadIdx.x; k < length; k += cuda::THREADS) {
      int from = k;
      if constexpr (!Source::sorted) from = place[k];
      if (with[k] && from >= 0) visit(from, with[k]);
    }
  }
};

// visit(j, u, c) for each column with c > 0 values of the part above u. Returns whether a value of the row is NaN.
template <class Part, class T, class Visit>
__device__ int each_active(Part& part, const Values<T>& tile, int64_t i, T sign, T margin, bool below, Visit visit) {
  int spoiled = 0;
  for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
    const Columns<T> columns(tile, i, j0, sign, margin);
    spoiled |= columns.spoiled;
    for (int h = 0; h < HELD; ++h) {
      const int number = part.above(columns.u[h]);
      if (!number) continue;
      visit(columns.number(j0, h), columns.u[h], number);
      if (below) atomicAdd(part.with + part.length - number, 1);
    }
  }
  return spoiled;
}

template <int LENGTH, class Source, class T>
__global__ void rank_rows(Values<T> tile, T sign, Source source, T margin, double* totals, int64_t* counts, int64_t* below) {
  __shared__ Part<Source, T, LENGTH> part;
  const int64_t i = blockIdx.x;
  double total = 0;
  int64_t count = 0;
  const bool there = source.there(i);
  int spoiled = !there;
  // Once at least, for a NaN in a row without a list.
  for (int64_t from = 0; there && (from == 0 || from < source.length(i)); from += LENGTH) {
    part.take(source, tile, i, from);
    spoiled |= each_active(part, tile, i, sign, margin, below, [&](int64_t, T u, int c) {
      total += part.sums[c] - double(c) * double(u);
      count += c;
    });
    if constexpr (!Source::own)
      if (below) part.each_below([&](int k, int number) { add_shared(source.place(below, i, from + k), number); });
  }
  total = summed(total);
  count = summed(count);
  spoiled = summed(spoiled);
  if (threadIdx.x) return;
  totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
  counts[i] += count;
}

// The gradients of positives go to g as well, where they are the row's own.
template <int LENGTH, class Source, class T>
__global__ void rank_grad_rows(Values<T> tile, T sign, Source source, T margin, const T* scale, T* g, int64_t g_stride,
                               int64_t* below) {
  __shared__ Part<Source, T, LENGTH> part;
  const int64_t i = blockIdx.x;
  if (!source.there(i)) return;
  const T factor = sign * scale[i];
  T* out = g + i * g_stride;
  for (int64_t from = 0; from < source.length(i); from += LENGTH) {
    part.take(source, tile, i, from);
    each_active(part, tile, i, sign, margin, below || Source::own, [&](int64_t j, T, int c) { out[j] -= factor * T(c); });
    if constexpr (Source::own)
      part.each_below([&](int k, int number) { out[source.column(i, from + k)] += factor * T(number); });
    else if (below)
      part.each_below([&](int k, int number) { add_shared(source.place(below, i, from + k), number); });
  }
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
  using Source = GivenLists<T>;
  const auto kernel = lists.length <= SHORT ? rank_rows<SHORT, Source, T> : rank_rows<LONG, Source, T>;
  launch(stream, block_each(tile.m), kernel, tile, sign, Source{lists}, margin, totals, counts, below);
}

template <class T>
void OrderedKernels<T>::rank_grads(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists, T margin,
                                   const T* scale, T* g, int64_t g_stride, int64_t* below) {
  using Source = GivenLists<T>;
  const auto kernel = lists.length <= SHORT ? rank_grad_rows<SHORT, Source, T> : rank_grad_rows<LONG, Source, T>;
  launch(stream, block_each(tile.m), kernel, tile, sign, Source{lists}, margin, scale, g, g_stride, below);
}

template <class T>
void OrderedKernels<T>::triplets(const Stream& stream, const Values<T>& tile, T sign, const Members& members, T margin,
                                 double* totals, int64_t* counts) {
  using Source = OwnPositives<T>;
  const Source source{members, sign};
  launch(stream, block_each(tile.m), rank_rows<GATHERED, Source, T>, tile, sign, source, margin, totals, counts, nullptr);
}

template <class T>
void OrderedKernels<T>::triplet_grads(const Stream& stream, const Values<T>& tile, T sign, const Members& members, T margin,
                                      const T* scale, T* g, int64_t g_stride) {
  using Source = OwnPositives<T>;
  const Source source{members, sign};
  launch(stream, block_each(tile.m), rank_grad_rows<GATHERED, Source, T>, tile, sign, source, margin, scale, g, g_stride, nullptr);
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
