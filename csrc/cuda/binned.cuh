// Kernels of metric_kernels/binned.py: histograms in shared memory, as sums of integers.
#pragma once
#include "../nodes.h"
#include "block.cuh"

namespace {

// Bins that fit into shared memory; of more, each share goes to device memory by itself.
constexpr int BINS = 2048;
// Blocks that share the rows of one histogram: a few for each processor of any GPU.
constexpr int64_t BLOCKS = 1024;
// Shared memory adds words of 32 bits at once and those of 64 only in a loop, so a share is counted in parts of 16 bits. Sums of
// so many have room for them.
constexpr int PART_BITS = 16;
constexpr int64_t MOST = int64_t(1) << 15;

// For each node how many values lie between it and the next one, and their shares of the next one, added up part by part.
template <class T> struct SharedBins {
  static constexpr int PARTS = sizeof(T) == 4 ? 2 : 3, ALL_BITS = PART_BITS * PARTS;
  unsigned numbers[BINS], shares[PARTS][BINS];

  __device__ void clear(int64_t size) {
    for (int k = threadIdx.x; k < size; k += gpu::THREADS) clear_bin(k);
    __syncthreads();
  }
  __device__ void add(int64_t place, T share, int bits) {
    const int64_t upper = rounded(double(share) * double(int64_t(1) << bits));
    atomicAdd(numbers + place, 1u);
    for (int part = 0; part < PARTS; ++part) {
      const unsigned all = unsigned(upper >> (PART_BITS * part));
      atomicAdd(shares[part] + place, part + 1 < PARTS ? all & ((1u << PART_BITS) - 1) : all);
    }
  }
  // Adds everything to a histogram in units of 2^-bits, whose shares were counted in those of 2^-kept, and clears it.
  __device__ void flush(int64_t size, int bits, int kept, int64_t* out) {
    __syncthreads();
    for (int k = threadIdx.x; k < size; k += gpu::THREADS) {
      if (!numbers[k]) continue;
      int64_t upper = 0;
      for (int part = 0; part < PARTS; ++part) upper += int64_t(shares[part][k]) << (PART_BITS * part);
      upper <<= bits - kept;
      add_atomically(out + k, (int64_t(numbers[k]) << bits) - upper);
      add_atomically(out + k + 1, upper);
      clear_bin(k);
    }
    __syncthreads();
  }

 private:
  __device__ void clear_bin(int k) {
    numbers[k] = 0;
    for (int part = 0; part < PARTS; ++part) shares[part][k] = 0;
  }
};

template <class T> __global__ void histogram_rows(Values<T> tile, Nodes nodes, int bits, int64_t* out, bool* spoiled) {
  __shared__ SharedBins<T> bins;
  const int64_t size = 2 * nodes.number;
  const T low = T(nodes.low), per_step = T(1 / nodes.step);
  const int32_t last = int32_t(nodes.number - 1);
  const bool fits = size <= BINS;
  const int kept = fits ? min(bits, SharedBins<T>::ALL_BITS) : bits;
  if (fits) bins.clear(size);
  int64_t held = 0;
  for (int64_t i = blockIdx.x; i < tile.m; i += gridDim.x) {
    const T* v = tile.v + i * tile.stride;
    const int64_t self = tile.diagonal < 0 ? -1 : tile.diagonal + i, label = tile.labels[i];
    const bool lone = nodes.lone && label < 0;
    int64_t* of_row = out + (nodes.per_anchor ? i * size : 0);
    int bad = 0;
    for (int64_t j0 = 0; j0 < tile.n; j0 += MOST) {
      const int64_t end = min(tile.n, j0 + MOST);
      if (fits && held + end - j0 > MOST) {
        bins.flush(size, bits, kept, of_row);
        held = 0;
      }
      held += end - j0;
      for (int64_t j = j0 + threadIdx.x; j < end; j += gpu::THREADS) {
        if (j == self) continue;
        const bool finite = v[j] - v[j] == T(0), same = tile.ref_labels[j] == label;
        bad |= !finite;
        if (!finite || (same && lone)) continue;
        T share;
        const int64_t place = lower_node(v[j], low, per_step, last, share) + (same ? 0 : nodes.number);
        if (fits) {
          bins.add(place, share, kept);
          continue;
        }
        const int64_t one = int64_t(1) << bits, upper = rounded(double(share) * double(one));
        add_atomically(of_row + place, one - upper);
        add_atomically(of_row + place + 1, upper);
      }
    }
    bad = summed(bad);
    if (threadIdx.x == 0 && bad) spoiled[i] = true;
    if (!fits || !(nodes.per_anchor || i + gridDim.x >= tile.m)) continue;
    bins.flush(size, bits, kept, of_row);
    held = 0;
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
