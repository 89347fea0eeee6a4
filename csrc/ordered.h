// Kernels of metric_kernels/ordered.py: every negative of a row against a sorted list of positive values.
//
// A very short list is compared with every column. With a longer one, only negatives below its largest value matter, few of
// them in training, and are gathered first; they are compared value by value, or, if the list is long, the place of each is
// looked up in a table and found by bisection from there, for all of them in step.
#pragma once
#include <algorithm>
#include <vector>

#include "costs.h"
#include "values.h"

namespace {

constexpr int WIDTH = 512;
constexpr int64_t MOST_BUCKETS = 1 << 16;

// How a list is searched depends on its length, and the limits on the lanes of a vector register: where two ways take the same
// time is measured in benchmarks/results/crossover.csv, whose program defines the limits to have each way alone.
#if defined(__AVX512F__)
constexpr int64_t REGISTER = 64;
#elif defined(__AVX2__)
constexpr int64_t REGISTER = 32;
#else
constexpr int64_t REGISTER = 16;
#endif
#ifdef DIRECT_UP_TO
template <class T> constexpr int64_t direct_up_to = DIRECT_UP_TO;
#else
template <class T> constexpr int64_t direct_up_to = 2 * (REGISTER / int64_t(sizeof(T)));
#endif
// With 8 values, comparing every column takes half as long as gathering if all are found to matter, and twice if few are.
#ifdef DENSE_UP_TO
template <class T> constexpr int64_t dense_up_to = DENSE_UP_TO;
#else
template <class T> constexpr int64_t dense_up_to = std::min<int64_t>(8, direct_up_to<T>);
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
  int32_t spoiled = 0;
  for (int j = 0; j < chunk.len; ++j) {
    chunk.u[j] = sign * v[j] - margin;
    chunk.negative[j] = other[j] != label;
    spoiled |= v[j] != v[j];
  }
  return spoiled;
}

// Negatives of a chunk that are below some value of a list, and how many values are above each.
template <class T> struct Active {
  int number;
  T u[WIDTH];
  int32_t column[WIDTH], above[WIDTH];

  void gather(const Chunk<T>& chunk, T top) {
    constexpr int group = 16;
    int32_t active[WIDTH];
    for (int j = 0; j < chunk.len; ++j) active[j] = chunk.negative[j] & int32_t(chunk.u[j] < top);
    number = 0;
    for (int first = 0; first < chunk.len; first += group) {
      const int last = std::min(first + group, chunk.len);
      int32_t any = 0;
      for (int j = first; j < last; ++j) any += active[j];
      if (!any) continue;
      for (int j = first; j < last; ++j) {
        u[number] = chunk.u[j], column[number] = j;
        number += active[j];
      }
    }
  }
};

// A sorted list that is searched often: the range of its values is cut into equal buckets, and `start[q]` values lie in those
// before bucket q. Rounding keeps the order: values of later buckets are larger, so that a search that begins at start[q] and
// takes no more steps than the fullest bucket needs ends in bucket q.
template <class T> struct Searched {
  const T* list = nullptr;
  int64_t length = 0;
  T low = T(0), scale = T(0);
  int32_t last = 0, first_step = 0;
  std::vector<int32_t> start;
  std::vector<T> padded;  // with inf, so that a step beyond the end is never taken

  int32_t bucket(T u) const {
    T place = (u - low) * scale;
    place = place > T(0) ? place : T(0);
    return int32_t(place < T(last) ? place : T(last));
  }

  // Values of -inf are above nothing.
  void set(const T* values, int64_t number) {
    const T* first = std::upper_bound(values, values + number, -std::numeric_limits<T>::infinity());
    list = first, length = values + number - first;
    if (length <= direct_up_to<T>) return;
    int64_t buckets = 64;
    while (buckets < 2 * length && buckets < MOST_BUCKETS) buckets *= 2;
    low = list[0], last = int32_t(buckets - 1);
    scale = T(buckets) / (list[length - 1] - low);
    start.assign(buckets + 1, 0);
    for (int64_t k = 0; k < length; ++k) ++start[bucket(list[k]) + 1];
    const int32_t fullest = *std::max_element(start.begin(), start.end());
    for (int64_t q = 0; q < buckets; ++q) start[q + 1] += start[q];
    first_step = 1;
    while (2 * first_step <= fullest) first_step *= 2;
    padded.assign(list, list + length);
    padded.resize(length + 2 * first_step, std::numeric_limits<T>::infinity());
  }

  T top() const { return length ? list[length - 1] : -std::numeric_limits<T>::infinity(); }

  void number_above(Active<T>& of) const {
    const int number = of.number;
    const T* u = of.u;
    int32_t* above = of.above;
    if (length <= direct_up_to<T>) {
      for (int j = 0; j < number; ++j) above[j] = 0;
      for (int64_t k = 0; k < length; ++k) {
        const T t = list[k];
        for (int j = 0; j < number; ++j) above[j] += t > u[j];
      }
      return;
    }
    // above[j] is the place up to which all values are known not to be above u.
    for (int j = 0; j < number; ++j) above[j] = start[bucket(u[j])];
    for (int32_t step = first_step; step; step /= 2)
      for (int j = 0; j < number; ++j) above[j] += padded[above[j] + step - 1] <= u[j] ? step : 0;
    for (int j = 0; j < number; ++j) above[j] = int32_t(length) - above[j];
  }
};

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

// What a thread knows of the list of its row, and has counted for it. Lists change from row to row or never.
template <class T> struct Current {
  const Lists<T>& lists;
  int64_t* below;  // or null
  int64_t number = -1;
  Searched<T> searched;
  std::vector<double> sums;   // of the c largest values, at [c]
  std::vector<int64_t> with;  // negatives with c values above them, at [c]

  Current(const Lists<T>& lists, int64_t* below) : lists(lists), below(below) {}

  void take(int64_t next) {
    if (next == number) return;
    hand_on();
    number = next;
    searched.set(lists.values + number * lists.stride, lists.length);
    sums.resize(searched.length + 1);
    sums[0] = 0;
    for (int64_t c = 1; c <= searched.length; ++c) sums[c] = sums[c - 1] + double(searched.list[searched.length - c]);
    if (below) with.assign(searched.length + 1, 0);
  }
  // Finds the negatives of a chunk among the list.
  void find(const Chunk<T>& chunk, Active<T>& active) {
    active.gather(chunk, searched.top());
    searched.number_above(active);
    if (below)
      for (int j = 0; j < active.number; ++j) ++with[active.above[j]];
  }
  bool dense() const { return searched.length <= dense_up_to<T>; }

  // Compares a very short list with every column of a chunk. Returns the sum of what is above each of them.
  double compare(const Chunk<T>& chunk, int32_t* above) {
    const int64_t length = searched.length;
    double sum = 0;
    int32_t before = 0;
    for (int j = 0; j < chunk.len; ++j) above[j] = 0;
    for (int64_t k = 0; k < length; ++k) {
      const T t = searched.list[k];
      int32_t hits = 0;
      for (int j = 0; j < chunk.len; ++j) {
        const int32_t one = chunk.negative[j] & int32_t(t > chunk.u[j]);
        above[j] += one, hits += one;
      }
      sum += hits ? double(t) * double(hits) : 0.0;
      if (below) with[length - k] += hits - before;
      before = hits;
    }
    return sum;
  }
  void hand_on() {
    if (number < 0 || !below) return;
    int64_t total = 0, *last = below + (number + 1) * lists.length - searched.length;
    for (int64_t k = 0; k < searched.length; ++k) {
      total += with[searched.length - k];
      if (!total) continue;
#pragma omp atomic
      last[k] += total;
    }
  }
};

template <class T, class Each>
inline void each_row(const Values<T>& tile, const Lists<T>& lists, int64_t* below, Each each) {
  // Rows of one list after another, so that a list is prepared once.
  std::vector<int64_t> order(tile.m);
  for (int64_t i = 0; i < tile.m; ++i) order[i] = i;
  if (!std::is_sorted(lists.which, lists.which + tile.m))
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lists.which[a] < lists.which[b]; });
#pragma omp parallel num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
  {
    Current<T> current(lists, below);
#pragma omp for schedule(static)
    for (int64_t k = 0; k < tile.m; ++k) {
      const int64_t i = order[k];
      current.take(lists.which[i]);
      each(i, current);
    }
    current.hand_on();
  }
}

template <class T>
void ranks(const Values<T>& tile, T sign, const Lists<T>& lists, T margin, double* totals, int64_t* counts, int64_t* below) {
  each_row(tile, lists, below, [&](int64_t i, Current<T>& current) {
    const double* sums = current.sums.data();
    Chunk<T> chunk;
    Active<T> active;
    double costs[WIDTH], total = 0;
    int64_t count = 0;
    bool spoiled = false;
    for (int64_t j0 = 0; j0 < tile.n; j0 += WIDTH) {
      spoiled |= load(tile, i, j0, sign, margin, chunk);
      if (current.dense()) {
        total += current.compare(chunk, active.above);
        int32_t number = 0;
        for (int j = 0; j < chunk.len; ++j) {
          const int32_t c = active.above[j];
          costs[j] = c ? double(c) * double(chunk.u[j]) : 0.0;
          number += c;
        }
        total -= lane_sum(costs, chunk.len);
        count += number;
        continue;
      }
      current.find(chunk, active);
      int64_t number = 0;
      for (int j = 0; j < active.number; ++j) {
        const int32_t c = active.above[j];
        costs[j] = sums[c] - double(c) * double(active.u[j]);
        number += c;
      }
      total += lane_sum(costs, active.number);
      count += number;
    }
    totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
    counts[i] += count;
  });
}

template <class T>
void rank_grads(const Values<T>& tile, T sign, const Lists<T>& lists, T margin, const T* scale, T* g, int64_t g_stride,
                int64_t* below) {
  each_row(tile, lists, below, [&](int64_t i, Current<T>& current) {
    Chunk<T> chunk;
    Active<T> active;
    const T factor = -sign * scale[i];
    for (int64_t j0 = 0; j0 < tile.n; j0 += WIDTH) {
      load(tile, i, j0, sign, margin, chunk);
      T* out = g + i * g_stride + j0;
      if (current.dense()) {
        current.compare(chunk, active.above);
        for (int j = 0; j < chunk.len; ++j) out[j] += factor * T(active.above[j]);
        continue;
      }
      current.find(chunk, active);
      for (int j = 0; j < active.number; ++j) out[active.column[j]] += factor * T(active.above[j]);
    }
  });
}

// Other shapes than the hinge: every pair of a value of the list and a negative.

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
            active[j] = chunk.negative[j] & int32_t(inside(value, of));
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
  const bool every = every_slope_counts(of);
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
          for (int j = 0; j < (every ? 0 : chunk.len); ++j) {
            part[j] = inside(cost<shape>(t - chunk.u[j]), of) ? part[j] : T(0);
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

// How many positives a row has that has most of them.
template <class T> int64_t most_positives(const Values<T>& tile) {
  int64_t most = 0;
#pragma omp parallel num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
  {
    int64_t mine = 0;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile.m; ++i) {
      const int64_t label = tile.labels[i];
      int64_t number = 0;
      for (int64_t j = 0; j < tile.n; ++j) number += tile.ref_labels[j] == label;
      if (tile.diagonal >= 0) number -= tile.ref_labels[tile.diagonal + i] == label;
      mine = std::max(mine, number);
    }
#pragma omp critical
    most = std::max(most, mine);
  }
  return most;
}

// The columns of the positives of each row by ascending u = sign * v, and u; missing ones come first, with column n.
template <class T> void positives(const Values<T>& tile, T sign, int64_t length, int64_t* columns, T* lists) {
  constexpr int64_t group = 16;
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    const T* v = tile.v + i * tile.stride;
    const int64_t label = tile.labels[i], own = tile.diagonal < 0 ? -1 : tile.diagonal + i;
    int64_t* column = columns + i * length;
    T* u = lists + i * length;
    int64_t number = 0;
    for (int64_t first = 0; first < tile.n; first += group) {
      const int64_t last = std::min(first + group, tile.n);
      int64_t any = 0;
      for (int64_t j = first; j < last; ++j) any += tile.ref_labels[j] == label;
      for (int64_t j = first; any && j < last; ++j)
        if (tile.ref_labels[j] == label && j != own) column[number++] = j;
    }
    // NaN comes last, as torch sorts it.
    std::stable_sort(column, column + number, [&](int64_t a, int64_t b) {
      return sign * v[a] < sign * v[b] || (v[b] != v[b] && v[a] == v[a]);
    });
    std::copy_backward(column, column + number, column + length);
    std::fill(column, column + length - number, tile.n);
    for (int64_t k = 0; k < length; ++k)
      u[k] = column[k] < tile.n ? sign * v[column[k]] : -std::numeric_limits<T>::infinity();
  }
}

// The smallest u of a row's negatives beyond t, and the first column that has it, or -1. Negatives that are NaN are nowhere.
template <class T> inline int64_t first_beyond(const Values<T>& tile, int64_t i, T sign, T t) {
  constexpr int64_t group = 16;
  const T* v = tile.v + i * tile.stride;
  const int64_t label = tile.labels[i];
  const T none = std::numeric_limits<T>::infinity();
  T lane[group];
  for (T& best : lane) best = none;
  int64_t last = 0;
  for (; last + group <= tile.n; last += group)
    for (int64_t l = 0; l < group; ++l) {
      const T u = sign * v[last + l];
      const bool beyond = (tile.ref_labels[last + l] != label) & (u > t);
      lane[l] = beyond & (u < lane[l]) ? u : lane[l];
    }
  T best = none;
  for (; last < tile.n; ++last) {
    const T u = sign * v[last];
    if (tile.ref_labels[last] != label && u > t && u < best) best = u;
  }
  for (const T other : lane) best = other < best ? other : best;
  for (int64_t j0 = 0; j0 < tile.n; j0 += group) {
    const int64_t end = std::min(j0 + group, tile.n);
    int64_t any = 0;
    for (int64_t j = j0; j < end; ++j) any += sign * v[j] == best;
    for (int64_t j = j0; any && j < end; ++j)
      if (sign * v[j] == best && best > t && tile.ref_labels[j] != label) return j;
  }
  return -1;
}

// The same for every value of a list; returns how many have none.
template <class T>
inline int64_t nearest_in_gaps(const Values<T>& tile, int64_t i, T sign, const T* list, int64_t length, int64_t* out) {
  const T* v = tile.v + i * tile.stride;
  // The nearest negative among those with exactly k + 1 values of the list before them, then among those with more.
  std::fill(out, out + length, int64_t(-1));
  for (int64_t j = 0; j < tile.n; ++j) {
    if (tile.ref_labels[j] == tile.labels[i]) continue;
    const T u = sign * v[j];
    const int64_t before = std::lower_bound(list, list + length, u) - list;
    if (before && (out[before - 1] < 0 || u < sign * v[out[before - 1]])) out[before - 1] = j;
  }
  int64_t best = -1, missing = 0;
  for (int64_t k = length - 1; k >= 0; --k) {
    if (out[k] >= 0) {
      const T u = sign * v[out[k]], top = best < 0 ? u : sign * v[best];
      if (best < 0 || u < top || (u == top && out[k] < best)) best = out[k];
    }
    out[k] = best;
    missing += best < 0;
  }
  return missing;
}

// The first of the farthest negatives of a row, or -1.
template <class T> inline int64_t farthest_negative(const Values<T>& tile, int64_t i, T sign) {
  const T* v = tile.v + i * tile.stride;
  int64_t found = -1;
  for (int64_t j = 0; j < tile.n; ++j)
    if (tile.ref_labels[j] != tile.labels[i] && (found < 0 || sign * v[j] > sign * v[found])) found = j;
  return found;
}

template <class T> void nearest(const Values<T>& tile, T sign, const Lists<T>& lists, int64_t* columns) {
  const int64_t length = lists.length;
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= ONE_THREAD_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    const T* list = lists.values + i * lists.stride;
    int64_t* out = columns + i * length;
    int64_t missing = 0;
    if (length <= dense_up_to<T>) {
      for (int64_t k = 0; k < length; ++k) missing += (out[k] = first_beyond(tile, i, sign, list[k])) < 0;
    } else {
      missing = nearest_in_gaps(tile, i, sign, list, length, out);
    }
    if (!missing) continue;
    const int64_t farthest = farthest_negative(tile, i, sign);
    for (int64_t k = 0; k < length; ++k) out[k] = out[k] < 0 ? farthest : out[k];
  }
}

template <class T> constexpr Ordered<T> ordered = {most_positives<T>, positives<T>, ranks<T>, rank_grads<T>,
                                                   sums<T>,           sum_grads<T>, nearest<T>};

}  // namespace
