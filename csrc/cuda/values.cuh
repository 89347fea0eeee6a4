// Pair values by themselves, for the kernels of terms: one block a row.
#pragma once
#include <tuple>

#include "../fn.h"
#include "block.cuh"

namespace {

#include "formulas.gen.h"

template <class T> __global__ void value_rows(Tile<T> tile, T* out, int64_t out_stride) {
  const int64_t i = blockIdx.x;
  const T* s = tile.s + i * tile.stride;
  const T p = tile.p ? tile.p[i] : T(0);
  with_metric(tile.metric, [&](auto m) {
    using Metric = decltype(m);
    for (int64_t j = threadIdx.x; j < tile.n; j += gpu::THREADS)
      out[i * out_stride + j] = Metric::value(s[j], p, Metric::norms ? tile.q[j] : T(0), tile.eps);
  });
}

template <class T> __global__ void slope_rows(Tile<T> tile, const T* g, int64_t g_stride, T* norm_grad) {
  const int64_t i = blockIdx.x;
  T* s = tile.s + i * tile.stride;
  const T p = tile.p ? tile.p[i] : T(0);
  Sum<T> by_norm;
  with_metric(tile.metric, [&](auto m) {
    using Metric = decltype(m);
    for (int64_t j = threadIdx.x; j < tile.n; j += gpu::THREADS) {
      const T mine = g[i * g_stride + j];
      T ds, dp;
      Metric::slopes(s[j], p, Metric::norms ? tile.q[j] : T(0), tile.eps, ds, dp);
      by_norm.add(mine * dp);
      s[j] = mine * ds;
    }
  });
  if (!norm_grad) return;
  const double sum = summed(by_norm.value());
  if (threadIdx.x == 0) norm_grad[i] = T(sum);
}

constexpr int SIDE = 32;

// A block takes a square above the diagonal together with its mirror image. What is below the diagonal becomes what is above it,
// or both become their sum.
template <bool sum, class T> __global__ void transposed_squares(T* matrix, int64_t n, int64_t stride) {
  if (blockIdx.x < blockIdx.y) return;
  __shared__ T upper[SIDE][SIDE + 1], lower[SIDE][SIDE + 1];  // the odd width spreads a column over the banks
  const int64_t row = int64_t(blockIdx.y) * SIDE, column = int64_t(blockIdx.x) * SIDE;
  const int x = threadIdx.x % SIDE;
  for (int y = threadIdx.x / SIDE; y < SIDE; y += gpu::THREADS / SIDE) {
    if (row + y < n && column + x < n) upper[y][x] = matrix[(row + y) * stride + column + x];
    if (column + y < n && row + x < n) lower[y][x] = matrix[(column + y) * stride + row + x];
  }
  __syncthreads();
  for (int y = threadIdx.x / SIDE; y < SIDE; y += gpu::THREADS / SIDE) {
    if (sum && row + y < n && column + x < n) matrix[(row + y) * stride + column + x] = upper[y][x] + lower[x][y];
    const bool below = column + y > row + x && column + y < n && row + x < n;
    if (below) matrix[(column + y) * stride + row + x] = sum ? upper[x][y] + lower[y][x] : upper[x][y];
  }
}

}  // namespace

namespace gpu {

template <class T> void PairValues<T>::values(const Stream& stream, const Tile<T>& tile, T* out, int64_t out_stride) {
  launch(stream, block_each(tile.m), value_rows<T>, tile, out, out_stride);
}

template <class T>
void PairValues<T>::slopes(const Stream& stream, const Tile<T>& tile, const T* g, int64_t g_stride, T* norm_grad) {
  launch(stream, block_each(tile.m), slope_rows<T>, tile, g, g_stride, norm_grad);
}

template <bool sum, class T> void with_transposed(const Stream& stream, T* matrix, int64_t n, int64_t stride) {
  const int64_t squares = (n + SIDE - 1) / SIDE;
  if (squares > 65535) throw std::runtime_error("matrix: expected fewer than 2**21 rows, got " + std::to_string(n));
  launch(stream, dim3(unsigned(squares), unsigned(squares)), transposed_squares<sum, T>, matrix, n, stride);
}

template <class T> void PairValues<T>::add_transposed(const Stream& stream, T* matrix, int64_t n, int64_t stride) {
  with_transposed<true>(stream, matrix, n, stride);
}

template <class T> void PairValues<T>::mirror(const Stream& stream, T* matrix, int64_t n, int64_t stride) {
  with_transposed<false>(stream, matrix, n, stride);
}

}  // namespace gpu
