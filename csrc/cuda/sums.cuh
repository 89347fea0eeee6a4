// Triplets of any shape, those that count: every pair of a positive and a negative of a row.
//
// A thread holds some columns and goes through the positives, a part of which is in shared memory at a time.
#pragma once
#include "../costs.h"
#include "lists.cuh"

namespace {

// Positives in shared memory: one for each thread.
constexpr int PAIRED = gpu::THREADS;

template <class T>
__device__ int gathered(T* list, const OwnPositives<T>& source, const Values<T>& tile, int64_t i, int64_t from) {
  const int length = int(min(int64_t(PAIRED), source.length(i) - from)), k = threadIdx.x;
  __syncthreads();
  if (k < length) list[k] = source.value(tile, i, from + k);
  __syncthreads();
  return length;
}

template <Shape shape, class T>
__global__ void triplet_sum_rows(Values<T> tile, T sign, OwnPositives<T> source, T margin, Cost<T> of, double* totals,
                                 int64_t* counts) {
  __shared__ T list[PAIRED];
  const int64_t i = blockIdx.x;
  Sum<T> total;
  int64_t count = 0;
  int spoiled = 0;
  // Once at least, for a NaN in a row without positives.
  for (int64_t from = 0; from == 0 || from < source.length(i); from += PAIRED) {
    const int length = gathered(list, source, tile, i, from);
    for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
      const Columns<T> columns(tile, i, j0, sign, margin);
      spoiled |= columns.spoiled;
      for (int k = 0; k < length; ++k) {
        if (missing(list[k])) continue;
        T sum = T(0);
        for (int h = 0; h < HELD; ++h)
          if (h < columns.held) {
            const T value = cost<shape>(list[k] - columns.u[h]);
            const bool counted = columns.negative[h] && inside(value, of);
            sum += counted ? value : T(0);
            count += counted;
          }
        total.add(sum);
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

// A slope belongs to a negative, whose sum its thread keeps, and to a positive, of which each warp keeps a sum over its columns.
// What a warp adds up in T are a few numbers, none below 0.
template <Shape shape, class T>
__global__ void triplet_sum_grad_rows(Values<T> tile, T sign, OwnPositives<T> source, T margin, Cost<T> of, const T* scale,
                                      T* g, int64_t g_stride) {
  __shared__ T list[PAIRED];
  __shared__ double of_warp[WARPS][PAIRED];
  const int64_t i = blockIdx.x;
  const int warp = threadIdx.x / WARP, mine = threadIdx.x;
  const bool every = every_slope_counts(of);
  const T factor = sign * scale[i];
  T* out = g + i * g_stride;
  for (int64_t from = 0; from < source.length(i); from += PAIRED) {
    for (int w = 0; w < WARPS; ++w) of_warp[w][mine] = 0;
    const int length = gathered(list, source, tile, i, from);
    for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
      const Columns<T> columns(tile, i, j0, sign, margin);
      Sum<T> of_column[HELD];
      for (int k = 0; k < length; ++k) {
        if (missing(list[k])) continue;
        T sum = T(0);
        for (int h = 0; h < HELD; ++h)
          if (h < columns.held) {
            const T gap = list[k] - columns.u[h];
            const bool counted = columns.negative[h] && (every || inside(cost<shape>(gap), of));
            const T one = counted ? slope<shape>(gap) : T(0);
            of_column[h].add(one);
            sum += one;
          }
        sum = reduced_in_warp(sum, [](T a, T b) { return a + b; });
        if (threadIdx.x % WARP == 0) of_warp[warp][k] += double(sum);
      }
      for (int h = 0; h < HELD; ++h)
        if (columns.negative[h]) out[columns.number(j0, h)] -= factor * T(of_column[h].value());
    }
    __syncthreads();
    if (mine >= length || missing(list[mine])) continue;
    double sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += of_warp[w][mine];
    out[source.column(i, from + mine)] += factor * T(sum);
  }
}

}  // namespace
