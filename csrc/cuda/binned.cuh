// Kernels of metric_kernels/binned.py: histograms in shared memory, as sums of integers.
#pragma once
#include "../nodes.h"
#include "block.cuh"

namespace {

// Bins that fit into shared memory; of more, each share goes to device memory by itself.
constexpr int BINS = 4096;
// Blocks that share the rows of one histogram: a few for each processor of any GPU.
constexpr int64_t BLOCKS = 1024;

template <class T> __global__ void histogram_rows(Values<T> tile, Nodes nodes, int bits, int64_t* out, bool* spoiled) {
  __shared__ int64_t bins[BINS];
  const int64_t size = 2 * nodes.number, one = int64_t(1) << bits;
  const T low = T(nodes.low), per_step = T(1 / nodes.step);
  const int32_t last = int32_t(nodes.number - 1);
  const bool fits = size <= BINS;
  for (int k = threadIdx.x; fits && k < size; k += gpu::THREADS) bins[k] = 0;
  __syncthreads();
  for (int64_t i = blockIdx.x; i < tile.m; i += gridDim.x) {
    const T* v = tile.v + i * tile.stride;
    const int64_t self = tile.diagonal < 0 ? -1 : tile.diagonal + i, label = tile.labels[i];
    const bool lone = nodes.lone && label < 0;
    int64_t* of_row = out + (nodes.per_anchor ? i * size : 0);
    int64_t* to = fits ? bins : of_row;
    int bad = 0;
    for (int64_t j = threadIdx.x; j < tile.n; j += gpu::THREADS) {
      if (j == self) continue;
      const bool finite = v[j] - v[j] == T(0), same = tile.ref_labels[j] == label;
      bad |= !finite;
      if (!finite || (same && lone)) continue;
      T share;
      const int32_t node = lower_node(v[j], low, per_step, last, share);
      const int64_t place = node + (same ? 0 : nodes.number);
      const int64_t upper = rounded(double(share) * double(one));
      add_shared(to + place, one - upper);
      add_shared(to + place + 1, upper);
    }
    bad = summed(bad);
    if (threadIdx.x == 0 && bad) spoiled[i] = true;
    if (!fits || !(nodes.per_anchor || i + gridDim.x >= tile.m)) continue;
    for (int k = threadIdx.x; k < size; k += gpu::THREADS) {
      add_shared(of_row + k, bins[k]);
      bins[k] = 0;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void histogram_grad_rows(Values<T> tile, Nodes nodes, const T* tables, T* g, int64_t g_stride) {
  const int64_t i = blockIdx.x, label = tile.labels[i], self = tile.diagonal < 0 ? -1 : tile.diagonal + i;
  const T low = T(nodes.low), per_step = T(1 / nodes.step), high = T(nodes.low + nodes.step * double(nodes.number - 1));
  const int32_t last = int32_t(nodes.number - 1);
  const T* v = tile.v + i * tile.stride;
  const T* own = tables + (nodes.per_anchor ? i * 2 * nodes.number : 0);
  const bool lone = nodes.lone && label < 0;
  for (int64_t j = threadIdx.x; j < tile.n; j += gpu::THREADS) {
    const bool same = tile.ref_labels[j] == label;
    if (j == self || (same && lone) || !((v[j] >= low) & (v[j] <= high))) continue;
    T share;
    const T* at = own + lower_node(v[j], low, per_step, last, share) + (same ? 0 : nodes.number);
    g[i * g_stride + j] += (at[1] - at[0]) * per_step;
  }
}

}  // namespace

namespace gpu {

template <class T>
void BinnedKernels<T>::histogram(const Stream& stream, const Values<T>& tile, const Nodes& nodes, int bits, int64_t* out,
                                 bool* spoiled) {
  const int64_t blocks = nodes.per_anchor ? tile.m : std::min(tile.m, BLOCKS);
  launch(stream, block_each(blocks), histogram_rows<T>, tile, nodes, bits, out, spoiled);
}

template <class T>
void BinnedKernels<T>::histogram_grads(const Stream& stream, const Values<T>& tile, const Nodes& nodes, const T* tables, T* g,
                                       int64_t g_stride) {
  launch(stream, block_each(tile.m), histogram_grad_rows<T>, tile, nodes, tables, g, g_stride);
}

}  // namespace gpu
