// Kernels of metric_kernels/quadruplets.py: the values of all positive pairs of a batch as one list, whose length only the GPU
// knows. Grids are for as many pairs as there is room for.
#pragma once
#include <cub/block/block_merge_sort.cuh>

#include "ranks.cuh"

namespace {

// What a block sorts at once, and the values that a thread has of it.
constexpr int SORTED_EACH = 8;
constexpr int64_t RUN = SORTED_EACH * gpu::THREADS;
constexpr int64_t MOST_BLOCKS = 2048;

struct Less {
  template <class T> __device__ bool operator()(const T& a, const T& b) const { return a < b; }
};

// A part of an array for each row as its list, sorted or not.
template <class T, bool in_order> struct SegmentLists {
  static constexpr bool sorted = in_order, own = false;
  gpu::Segments<T> lists;

  __device__ bool there(int64_t) const { return true; }
  __device__ int64_t length(int64_t i) const { return lists.number[i]; }
  __device__ int64_t* place(int64_t* numbers, int64_t i, int64_t k) const { return numbers + lists.first[i] + k; }
  __device__ T value(const Values<T>&, int64_t i, int64_t k) const { return lists.values[lists.first[i] + k]; }
};

template <class Source> constexpr int PART = Source::sorted ? LONG : GATHERED;

template <class T, class Body> void with_order(const gpu::Segments<T>& lists, Body body) {
  if (lists.sorted) body(SegmentLists<T, true>{lists});
  else body(SegmentLists<T, false>{lists});
}

__device__ inline int64_t other(const gpu::Pairs& pairs, int64_t i, int64_t k) { return pairs.order[pairs.place[i] + 1 + k]; }

template <class T> __global__ void pair_value_rows(Values<T> tile, T sign, gpu::Pairs pairs, T* values) {
  const int64_t i = blockIdx.x;
  for (int64_t k = threadIdx.x; k < pairs.number[i]; k += gpu::THREADS)
    values[pairs.first[i] + k] = sign * tile.v[i * tile.stride + other(pairs, i, k)];
}

template <class T> __global__ void sort_runs(const T* values, const int64_t* total, T* sorted) {
  using Sort = cub::BlockMergeSort<T, gpu::THREADS, SORTED_EACH>;
  __shared__ typename Sort::TempStorage room;
  for (int64_t start = blockIdx.x * RUN; start < *total; start += gridDim.x * RUN) {
    T mine[SORTED_EACH];
    for (int k = 0; k < SORTED_EACH; ++k) {
      const int64_t at = start + k * gpu::THREADS + threadIdx.x;
      mine[k] = at < *total ? values[at] : std::numeric_limits<T>::infinity();
    }
    Sort(room).Sort(mine, Less());
    for (int k = 0; k < SORTED_EACH; ++k) {
      const int64_t at = start + threadIdx.x * SORTED_EACH + k;
      if (at < *total) sorted[at] = mine[k];
    }
    __syncthreads();
  }
}

// How many of the first `taken` values of two sorted lists together come from the first one, which wins ties.
template <class T> __device__ int64_t taken_of(const T* a, int64_t a_size, const T* b, int64_t b_size, int64_t taken) {
  int64_t low = max(int64_t(0), taken - b_size), high = min(taken, a_size);
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (b[taken - 1 - middle] < a[middle]) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Every two sorted runs become one; a thread takes a few places of it.
template <class T> __global__ void merge_runs(const T* from, const int64_t* total, int64_t run, T* to) {
  const int64_t step = gridDim.x * RUN;
  for (int64_t at = blockIdx.x * RUN + threadIdx.x * SORTED_EACH; at < *total; at += step) {
    const int64_t start = at / (2 * run) * (2 * run), middle = min(start + run, *total), end = min(start + 2 * run, *total);
    const T *a = from + start, *b = from + middle;
    const int64_t a_size = middle - start, b_size = end - middle;
    int64_t i = taken_of(a, a_size, b, b_size, at - start), j = at - start - i;
    for (int64_t k = at; k < min(at + SORTED_EACH, end); ++k) {
      const bool second = j < b_size && (i >= a_size || b[j] < a[i]);
      to[k] = second ? b[j++] : a[i++];
    }
  }
}

// The gradient of a pair is the number of negatives below its value, without those of its class.
template <class T>
__global__ void pair_grad_rows(Values<T> tile, T sign, gpu::Pairs pairs, const T* values, const T* sorted, const int64_t* total,
                               const int64_t* below, const int64_t* own_below, const T* scale, T* g, int64_t g_stride) {
  const int64_t i = blockIdx.x;
  for (int64_t k = threadIdx.x; k < pairs.number[i]; k += gpu::THREADS) {
    const int64_t pair = pairs.first[i] + k;
    int64_t low = 0, high = *total - 1;  // the first of equals; the last for a NaN
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sorted[middle] < values[pair]) low = middle + 1;
      else high = middle;
    }
    const double active = 0.5 * double(below[low]) - (own_below ? double(own_below[pair]) : 0.0);
    g[i * g_stride + other(pairs, i, k)] += sign * T(double(scale[i]) * active);
  }
}

}  // namespace

namespace gpu {

template <class T>
void PairKernels<T>::values(const Stream& stream, const Values<T>& tile, T sign, const Pairs& pairs, T* values) {
  launch(stream, block_each(tile.m), pair_value_rows<T>, tile, sign, pairs, values);
}

template <class T>
void PairKernels<T>::sort(const Stream& stream, const T* values, const int64_t* total, int64_t room, T* sorted, T* other) {
  const dim3 blocks(unsigned(min(MOST_BLOCKS, (room + RUN - 1) / RUN)));
  int merges = 0;
  while (RUN << merges < room) ++merges;
  T *from = merges % 2 ? other : sorted, *to = merges % 2 ? sorted : other;
  launch(stream, blocks, sort_runs<T>, values, total, from);
  for (int k = 0; k < merges; ++k, std::swap(from, to)) launch(stream, blocks, merge_runs<T>, from, total, RUN << k, to);
}

template <class T>
void PairKernels<T>::ranks(const Stream& stream, const Values<T>& tile, T sign, const Segments<T>& lists, T margin,
                           double* totals, int64_t* counts, int64_t* below) {
  with_order(lists, [&](auto source) {
    launch(stream, block_each(tile.m), rank_rows<PART<decltype(source)>, decltype(source), T>, tile, sign, source, margin, totals,
           counts, below);
  });
}

template <class T>
void PairKernels<T>::rank_grads(const Stream& stream, const Values<T>& tile, T sign, const Segments<T>& lists, T margin,
                                const T* scale, T* g, int64_t g_stride) {
  with_order(lists, [&](auto source) {
    launch(stream, block_each(tile.m), rank_grad_rows<PART<decltype(source)>, decltype(source), T>, tile, sign, source, margin,
           scale, g, g_stride, nullptr);
  });
}

template <class T>
void PairKernels<T>::grads(const Stream& stream, const Values<T>& tile, T sign, const Pairs& pairs, const T* values,
                           const T* sorted, const int64_t* total, const int64_t* below, const int64_t* own_below,
                           const T* scale, T* g, int64_t g_stride) {
  launch(stream, block_each(tile.m), pair_grad_rows<T>, tile, sign, pairs, values, sorted, total, below, own_below, scale, g,
         g_stride);
}

}  // namespace gpu
