// Kernels of metric_kernels/ordered.py: one block a row, with its list, or a part of it, in shared memory.
#pragma once
#include "nearest.cuh"
#include "ranks.cuh"
#include "sums.cuh"

namespace gpu {

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
void OrderedKernels<T>::triplet_sums(const Stream& stream, const Values<T>& tile, T sign, const Members& members, T margin,
                                     const Cost<T>& of, double* totals, int64_t* counts) {
  const OwnPositives<T> source{members, sign};
  with_shape<T>(of.shape, [&](auto shape) {
    launch(stream, block_each(tile.m), triplet_sum_rows<shape, T>, tile, sign, source, margin, of, totals, counts);
  });
}

template <class T>
void OrderedKernels<T>::triplet_sum_grads(const Stream& stream, const Values<T>& tile, T sign, const Members& members, T margin,
                                          const Cost<T>& of, const T* scale, T* g, int64_t g_stride) {
  const OwnPositives<T> source{members, sign};
  with_shape<T>(of.shape, [&](auto shape) {
    launch(stream, block_each(tile.m), triplet_sum_grad_rows<shape, T>, tile, sign, source, margin, of, scale, g, g_stride);
  });
}

template <class T>
void OrderedKernels<T>::semi_hard(const Stream& stream, const Values<T>& tile, T sign, const Members& members, T margin,
                                  const Cost<T>& of, double* totals, int64_t* counts) {
  const OwnPositives<T> source{members, sign};
  with_shape<T>(of.shape, [&](auto shape) {
    launch(stream, block_each(tile.m), semi_hard_rows<shape, T>, tile, sign, source, margin, of, totals, counts);
  });
}

template <class T>
void OrderedKernels<T>::semi_hard_grads(const Stream& stream, const Values<T>& tile, T sign, const Members& members, T margin,
                                        const Cost<T>& of, const T* scale, T* g, int64_t g_stride) {
  const OwnPositives<T> source{members, sign};
  with_shape<T>(of.shape, [&](auto shape) {
    launch(stream, block_each(tile.m), semi_hard_grad_rows<shape, T>, tile, sign, source, margin, of, scale, g, g_stride);
  });
}

template <class T>
void OrderedKernels<T>::nearest(const Stream& stream, const Values<T>& tile, T sign, const Lists<T>& lists,
                                int64_t* columns) {
  launch(stream, block_each(tile.m), nearest_rows<T>, tile, sign, GivenLists<T>{lists}, columns);
}

}  // namespace gpu
