// Kernels of metric_kernels/ordered.py: every negative of a row against a sorted list of positive values.
//
// A short list is compared value by value, for all columns of a chunk at once and without a branch; in a long one the place
// of each column is found by bisection, again for all columns of a chunk in step. What comes of a column that is no negative
// is masked at the end.
#pragma once
#include <algorithm>
#include <vector>

#include "fn.h"
#include "values.h"

namespace {

constexpr int WIDTH = 512;
// Longer lists are bisected. All lanes of a vector compare at once; the limit is where both ways take the same time in
// benchmarks/results/crossover.csv, whose program defines it to compile each way alone.
#if defined(DIRECT_UP_TO)
template <class T> constexpr int64_t direct_up_to = DIRECT_UP_TO;
#elif defined(__AVX512F__)
template <class T> constexpr int64_t direct_up_to = sizeof(T) == 4 ? 320 : 160;
#elif defined(__AVX2__)
template <class T> constexpr int64_t direct_up_to = sizeof(T) == 4 ? 192 : 48;
#else
template <class T> constexpr int64_t direct_up_to = sizeof(T) == 4 ? 96 : 12;
#endif
constexpr int64_t ONE_THREAD_BELOW = 1 << 12;

template <class T> struct Chunk {
  int len;
  T u[WIDTH];
  int32_t negative[WIDTH];  // 1 or 0
};

// Loads columns j0 ... of row i as u = sign * v - margin. Returns whether a value is NaN.
template <class T>
inline bool load(const Values<T>& tile, int64_t i, int64_t j0, T sign, T margin, Chunk<T>& chunk) {
  chunk.len = int(std::min<int64_t>(WIDTH, tile.n - j0));
  const T* v = tile.v + i * tile.stride + j0;
  const int64_t label = tile.labels[i];
  const int64_t* other = tile.ref_labels + j0;
  T spoiled = T(0);
  for (int j = 0; j < chunk.len; ++j) {
    chunk.u[j] = sign * v[j] - margin;
    chunk.negative[j] = other[j] != label;
    spoiled += v[j] != v[j] ? T(1) : T(0);
  }
  return spoiled > T(0);
}

// How many values of a sorted list are above each u of a chunk.
template <class T> inline void number_above(const T* list, int64_t length, const Chunk<T>& chunk, int32_t* above) {
  for (int j = 0; j < chunk.len; ++j) above[j] = 0;
  if (length <= direct_up_to<T>) {
    for (int64_t k = 0; k < length; ++k) {
      const T t = list[k];
      for (int j = 0; j < chunk.len; ++j) above[j] += t > chunk.u[j];
    }
    return;
  }
  // above[j] is the place up to which all values are known not to be above u.
  int64_t left = length;
  while (left > 0) {
    const int32_t half = int32_t((left + 1) / 2);
    for (int j = 0; j < chunk.len; ++j) {
      const int32_t next = above[j] + half;
      const bool fits = next <= length;
      const T probe = list[fits ? next - 1 : length - 1];
      above[j] = fits && !(probe > chunk.u[j]) ? next : above[j];
    }
    left -= half;
  }
  for (int j = 0; j < chunk.len; ++j) above[j] = int32_t(length) - above[j];
}

// Sums of the c largest values of a list, at [c].
template <class T> inline void largest_sums(const T* list, int64_t length, std::vector<double>& sums) {
  sums.resize(length + 1);
  sums[0] = 0;
  for (int64_t c = 1; c <= length; ++c) {
    const T value = list[length - c];
    sums[c] = sums[c - 1] + (value == -std::numeric_limits<T>::infinity() ? 0.0 : double(value));
  }
}

// What one thread has counted for one list. Lists change from row to row or never, so they are handed on when they do.
struct Hits {
  int64_t* below;
  int64_t stride, length, list = -1;
  std::vector<int64_t> with;  // negatives with c values above them, at [c]

  Hits(int64_t* below, int64_t stride, int64_t length) : below(below), stride(stride), length(length), with(length + 1) {}

  void take(int64_t next) {
    if (next != list) hand_on();
    list = next;
  }
  void hand_on() {
    if (list >= 0) {
      int64_t number = 0;
      for (int64_t k = 0; k < length; ++k) {
        number += with[length - k];
        if (!number) continue;
        int64_t& target = below[list * stride + k];
#pragma omp atomic
        target += number;
      }
    }
    std::fill(with.begin(), with.end(), 0);
  }
};

template <class T, class Each>
inline void each_row(const Values<T>& tile, const Lists<T>& lists, int64_t* below, Each each) {
#pragma omp parallel num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
  {
    Hits hits(below, lists.length, lists.length);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile.m; ++i) {
      hits.take(lists.which[i]);
      each(i, lists.values + lists.which[i] * lists.stride, hits);
    }
    hits.hand_on();
  }
}

template <class T> inline void count_hits(const Chunk<T>& chunk, const int32_t* above, Hits& hits) {
  for (int j = 0; j < chunk.len; ++j) hits.with[above[j]] += chunk.negative[j];
}

template <class T>
void ranks(const Values<T>& tile, T sign, const Lists<T>& lists, T margin, double* totals, int64_t* counts, int64_t* below) {
  std::vector<double> shared;
  if (lists.number == 1) largest_sums(lists.values, lists.length, shared);
  each_row(tile, lists, below, [&](int64_t i, const T* list, Hits& hits) {
    thread_local std::vector<double> own;
    if (lists.number != 1) largest_sums(list, lists.length, own);
    const double* sums = lists.number == 1 ? shared.data() : own.data();
    Chunk<T> chunk;
    int32_t above[WIDTH];
    double total = 0;
    int64_t count = 0;
    bool spoiled = false;
    for (int64_t j0 = 0; j0 < tile.n; j0 += WIDTH) {
      spoiled |= load(tile, i, j0, sign, margin, chunk);
      number_above(list, lists.length, chunk, above);
      double part = 0;
      int64_t number = 0;
      for (int j = 0; j < chunk.len; ++j) {
        const int32_t c = chunk.negative[j] ? above[j] : 0;
        part += c ? sums[c] - c * double(chunk.u[j]) : 0.0;
        number += c;
      }
      total += part;
      count += number;
      count_hits(chunk, above, hits);
    }
    totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
    counts[i] += count;
  });
}

template <class T>
void rank_grads(const Values<T>& tile, T sign, const Lists<T>& lists, T margin, const T* scale, T* g, int64_t g_stride,
                int64_t* below) {
  each_row(tile, lists, below, [&](int64_t i, const T* list, Hits& hits) {
    Chunk<T> chunk;
    int32_t above[WIDTH];
    const T factor = -sign * scale[i];
    for (int64_t j0 = 0; j0 < tile.n; j0 += WIDTH) {
      load(tile, i, j0, sign, margin, chunk);
      number_above(list, lists.length, chunk, above);
      T* out = g + i * g_stride + j0;
      for (int j = 0; j < chunk.len; ++j) out[j] += factor * T(above[j] * chunk.negative[j]);
      count_hits(chunk, above, hits);
    }
  });
}

// ---- other shapes than the hinge: every pair of a value of the list and a negative ------------------------------------

// The sum of up to WIDTH numbers, by as many partial sums at every instruction set.
template <class T> inline T lane_sum(const T* part, int len) {
  constexpr int lanes = 16;
  T lane[lanes] = {}, sum = T(0);
  int j = 0;
  for (; j + lanes <= len; j += lanes)
    for (int l = 0; l < lanes; ++l) lane[l] += part[j + l];
  for (; j < len; ++j) sum += part[j];
  for (int l = 0; l < lanes; ++l) sum += lane[l];
  return sum;
}

template <Shape shape, class T> inline T cost(T gap) {
  const T positive = gap > T(0) ? gap : T(0);
  if constexpr (shape == Shape::softplus) return fn::softplus(gap);
  if constexpr (shape == Shape::squared_hinge) return positive * positive;
  return positive;
}
template <Shape shape, class T> inline T slope(T gap) {
  if constexpr (shape == Shape::softplus) return fn::sigmoid(gap);
  if constexpr (shape == Shape::squared_hinge) return gap > T(0) ? T(2) * gap : T(0);
  return gap > T(0) ? T(1) : T(0);
}

template <class T, class F> inline void with_shape(Shape shape, F f) {
  switch (shape) {
    case Shape::hinge: return f(std::integral_constant<Shape, Shape::hinge>{});
    case Shape::squared_hinge: return f(std::integral_constant<Shape, Shape::squared_hinge>{});
    case Shape::softplus: return f(std::integral_constant<Shape, Shape::softplus>{});
  }
}

template <class T>
void sums(const Values<T>& tile, T sign, const Lists<T>& lists, T margin, Cost<T> of, double* totals, int64_t* counts) {
  with_shape<T>(of.shape, [&](auto shape) {
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
    for (int64_t i = 0; i < tile.m; ++i) {
      const T* list = lists.values + i * lists.stride;
      Chunk<T> chunk;
      double total = 0;
      int64_t count = 0;
      bool spoiled = false;
      for (int64_t j0 = 0; j0 < tile.n; j0 += WIDTH) {
        spoiled |= load(tile, i, j0, sign, margin, chunk);
        for (int64_t k = 0; k < lists.length; ++k) {
          const T t = list[k];
          if (t == -std::numeric_limits<T>::infinity()) continue;
          T part[WIDTH];
          int32_t active[WIDTH];
          for (int j = 0; j < chunk.len; ++j) {
            const T value = cost<shape>(t - chunk.u[j]);
            active[j] = chunk.negative[j] & int32_t(value > of.low) & int32_t(value < of.high);
            part[j] = active[j] ? value : T(0);
          }
          int32_t number = 0;
          for (int j = 0; j < chunk.len; ++j) number += active[j];
          total += lane_sum(part, chunk.len);
          count += number;
        }
      }
      totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
      counts[i] += count;
    }
  });
}

template <class T>
void sum_grads(const Values<T>& tile, T sign, const Lists<T>& lists, T margin, Cost<T> of, const T* scale, T* g,
               int64_t g_stride, double* slopes) {
  // Where f does not count, its slope is 0.
  const bool any = of.low <= T(0) && of.high == std::numeric_limits<T>::infinity();
  with_shape<T>(of.shape, [&](auto shape) {
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
    for (int64_t i = 0; i < tile.m; ++i) {
      const T* list = lists.values + i * lists.stride;
      const T factor = -sign * scale[i];
      Chunk<T> chunk;
      for (int64_t j0 = 0; j0 < tile.n; j0 += WIDTH) {
        load(tile, i, j0, sign, margin, chunk);
        T by_negative[WIDTH] = {};
        for (int64_t k = 0; k < lists.length; ++k) {
          const T t = list[k];
          if (t == -std::numeric_limits<T>::infinity()) continue;
          T part[WIDTH];
          for (int j = 0; j < chunk.len; ++j) {
            const T value = slope<shape>(t - chunk.u[j]);
            part[j] = chunk.negative[j] ? value : T(0);
          }
          for (int j = 0; j < (any ? 0 : chunk.len); ++j) {
            const T value = cost<shape>(t - chunk.u[j]);
            part[j] = (value > of.low) & (value < of.high) ? part[j] : T(0);
          }
          for (int j = 0; j < chunk.len; ++j) by_negative[j] += part[j];
          slopes[i * lists.length + k] += lane_sum(part, chunk.len);
        }
        T* out = g + i * g_stride + j0;
        for (int j = 0; j < chunk.len; ++j) out[j] += factor * by_negative[j];
      }
    }
  });
}

// ---- semi-hard negatives ----------------------------------------------------------------------------------------------

template <class T> void nearest(const Values<T>& tile, T sign, const Lists<T>& lists, int64_t* columns) {
  const int64_t length = lists.length;
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    const T* list = lists.values + i * lists.stride;
    const T* v = tile.v + i * tile.stride;
    int64_t* out = columns + i * length;
    // The nearest negative among those with exactly k + 1 values of the list before them, then among those with more.
    std::fill(out, out + length, int64_t(-1));
    int64_t farthest = -1;
    for (int64_t j = 0; j < tile.n; ++j) {
      if (tile.ref_labels[j] == tile.labels[i]) continue;
      const T u = sign * v[j];
      if (farthest < 0 || u > sign * v[farthest]) farthest = j;
      const int64_t before = std::lower_bound(list, list + length, u) - list;
      if (before && (out[before - 1] < 0 || u < sign * v[out[before - 1]])) out[before - 1] = j;
    }
    int64_t best = -1;
    for (int64_t k = length - 1; k >= 0; --k) {
      if (out[k] >= 0) {
        const T u = sign * v[out[k]], top = best < 0 ? u : sign * v[best];
        if (best < 0 || u < top || (u == top && out[k] < best)) best = out[k];
      }
      out[k] = best < 0 ? farthest : best;
    }
  }
}

template <class T> constexpr Ordered<T> ordered = {ranks<T>, rank_grads<T>, sums<T>, sum_grads<T>, nearest<T>};

}  // namespace
