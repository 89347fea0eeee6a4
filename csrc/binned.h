// Kernels of metric_kernels/binned.py: soft histograms as sums of integers, and their slopes in the backward pass.
#pragma once
#include <vector>

#include "values.h"

namespace {

// The place of a value among the nodes: the lower of its two, and the share of the upper one. Not for NaN.
template <class T> inline int32_t lower_node(T v, T low, T per_step, int32_t last, T& share) {
  T place = (v - low) * per_step;
  place = place > T(0) ? place : T(0);
  place = place < T(last) ? place : T(last);
  const int32_t node = int32_t(place) < last ? int32_t(place) : last - 1;
  share = place - T(node);
  return node;
}

template <class T> void histogram(const Values<T>& tile, const Nodes& nodes, int bits, int64_t* out, bool* spoiled) {
  const int64_t size = 2 * nodes.number;
  const T low = T(nodes.low), per_step = T(1 / nodes.step), unit = T(int64_t(1) << bits);
  const int32_t last = int32_t(nodes.number - 1);
#pragma omp parallel num_threads(tile.threads) if (tile.m * tile.n >= (1 << 12))
  {
    std::vector<int64_t> own(nodes.per_anchor ? 0 : size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile.m; ++i) {
      int64_t* row = nodes.per_anchor ? out + i * size : own.data();
      const T* v = tile.v + i * tile.stride;
      const int64_t self = tile.diagonal < 0 ? -1 : tile.diagonal + i;
      for (int64_t j = 0; j < tile.n; ++j) {
        if (j == self) continue;
        if (v[j] != v[j]) {
          spoiled[i] = true;
          continue;
        }
        T share;
        const int32_t node = lower_node(v[j], low, per_step, last, share);
        const int64_t upper = std::llrint(double(share * unit));
        int64_t* at = row + (tile.ref_labels[j] == tile.labels[i] ? 0 : nodes.number) + node;
        at[0] += (int64_t(1) << bits) - upper;
        at[1] += upper;
      }
    }
    if (!nodes.per_anchor) {
#pragma omp critical(metric_kernels_histogram)
      for (int64_t k = 0; k < size; ++k) out[k] += own[k];
    }
  }
}

template <class T>
void histogram_grads(const Values<T>& tile, const Nodes& nodes, const T* tables, T* g, int64_t g_stride) {
  const int64_t size = 2 * nodes.number;
  const T low = T(nodes.low), per_step = T(1 / nodes.step), high = T(nodes.low + nodes.step * double(nodes.number - 1));
  const int32_t last = int32_t(nodes.number - 1);
#pragma omp parallel num_threads(tile.threads) if (tile.m * tile.n >= (1 << 12))
  {
    std::vector<T> slopes(size);
    int64_t known = -1;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile.m; ++i) {
      const int64_t table = nodes.per_anchor ? i : 0;
      if (table != known) {
        for (int64_t k = 0; k + 1 < size; ++k) slopes[k] = (tables[table * size + k + 1] - tables[table * size + k]) * per_step;
        known = table;
      }
      const T* v = tile.v + i * tile.stride;
      T* out = g + i * g_stride;
      const int64_t self = tile.diagonal < 0 ? -1 : tile.diagonal + i, label = tile.labels[i];
      for (int64_t j = 0; j < tile.n; ++j) {
        const bool inside = v[j] >= low && v[j] <= high && j != self;
        T share;
        const int32_t node = lower_node(inside ? v[j] : low, low, per_step, last, share);
        const T w = slopes[(tile.ref_labels[j] == label ? 0 : nodes.number) + node];
        out[j] += inside ? w : T(0);
      }
    }
  }
}

template <class T> constexpr Binned<T> binned = {histogram<T>, histogram_grads<T>};

}  // namespace
