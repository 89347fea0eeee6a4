// Kernels of metric_kernels/binned.py: soft histograms as sums of integers, and their slopes in the backward pass.
#pragma once
#include <algorithm>
#include <vector>

#include "nodes.h"
#include "values.h"

namespace {

// Columns whose places are found at once.
constexpr int width = 256;

template <class T> void histogram(const Values<T>& tile, const Nodes& nodes, int bits, int64_t* out, bool* spoiled) {
  const int64_t size = 2 * nodes.number, one = int64_t(1) << bits;
  const T low = T(nodes.low), per_step = T(1 / nodes.step);
  const int32_t last = int32_t(nodes.number - 1);
#pragma omp parallel num_threads(tile.threads) if (tile.m * tile.n >= (1 << 12))
  {
    std::vector<int64_t> own(size + nodes.number);  // and what counts nowhere
    int64_t* const bins = own.data();
    const auto add_to = [=](int64_t* total) {
      for (int64_t k = 0; k < size; ++k) total[k] += bins[k];
    };
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile.m; ++i) {
      const int64_t self = tile.diagonal < 0 ? -1 : tile.diagonal + i, label = tile.labels[i];
      const int32_t negative = int32_t(nodes.number), positive = nodes.lone && label < 0 ? int32_t(size) : 0;
      for (int64_t j0 = 0; j0 < tile.n; j0 += width) {
        const int len = int(std::min<int64_t>(width, tile.n - j0));
        const T* v = tile.v + i * tile.stride + j0;
        const int64_t* other = tile.ref_labels + j0;
        // All places at once, then one share after another.
        int32_t place[width];
        int64_t lower[width], upper[width];
        int32_t bad = 0;
        for (int j = 0; j < len; ++j) {
          T share;
          place[j] = lower_node(v[j], low, per_step, last, share) + (other[j] == label ? positive : negative);
          const bool finite = v[j] - v[j] == T(0);
          const int64_t counts = finite ? one : 0;
          upper[j] = counts ? rounded(double(share) * double(one)) : 0;
          lower[j] = counts - upper[j];
          bad |= !finite & (j0 + j != self);
        }
        if (self >= j0 && self < j0 + len) lower[self - j0] = upper[self - j0] = 0;
        if (bad) spoiled[i] = true;
        for (int j = 0; j < len; ++j) {
          bins[place[j]] += lower[j];
          bins[place[j] + 1] += upper[j];
        }
      }
      if (!nodes.per_anchor) continue;
      add_to(out + i * size);
      std::fill(own.begin(), own.end(), int64_t(0));
    }
    if (!nodes.per_anchor) {
#pragma omp critical(metric_kernels_histogram)
      add_to(out);
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
    std::vector<T> slopes(size + nodes.number);  // and zeros for what has none
    int64_t known = -1;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile.m; ++i) {
      const int64_t table = nodes.per_anchor ? i : 0;
      if (table != known) {
        for (int64_t k = 0; k + 1 < size; ++k) slopes[k] = (tables[table * size + k + 1] - tables[table * size + k]) * per_step;
        known = table;
      }
      const int64_t self = tile.diagonal < 0 ? -1 : tile.diagonal + i, label = tile.labels[i];
      const int32_t negative = int32_t(nodes.number), nowhere = int32_t(size), positive = nodes.lone && label < 0 ? nowhere : 0;
      for (int64_t j0 = 0; j0 < tile.n; j0 += width) {
        const int len = int(std::min<int64_t>(width, tile.n - j0));
        const T* v = tile.v + i * tile.stride + j0;
        const int64_t* other = tile.ref_labels + j0;
        int32_t place[width];
        for (int j = 0; j < len; ++j) {
          T share;
          const int32_t node = lower_node(v[j], low, per_step, last, share) + (other[j] == label ? positive : negative);
          place[j] = (v[j] >= low) & (v[j] <= high) ? node : nowhere;
        }
        if (self >= j0 && self < j0 + len) place[self - j0] = nowhere;
        T* out = g + i * g_stride + j0;
        for (int j = 0; j < len; ++j) out[j] += slopes[place[j]];
      }
    }
  }
}

template <class T> constexpr Binned<T> binned = {histogram<T>, histogram_grads<T>};

}  // namespace
