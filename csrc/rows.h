// The row kernels of the elementwise family, for any formula and metric.
//
// A row is taken in chunks that stay in the first-level cache. Negatives are many, so a formula is evaluated for every
// column as if it were one, without a branch; positives are few, so they are listed, evaluated, and written over it.
#pragma once
#include <tuple>
#include <utility>

#include "dual.h"
#include "fn.h"
#include "stages.h"
#include "tile.h"

namespace {

constexpr int CHUNK = 512;
// Reductions keep this many partial results at every instruction set, so that all of them give the same sums.
constexpr int LANES = 64;
constexpr int64_t SERIAL_BELOW = 1 << 12;

template <class T> constexpr T infinity = std::numeric_limits<T>::infinity();

// ---- metrics -------------------------------------------------------------------------------------------------------

template <class M, class T>
inline void metric_values(const T* s, T p, const T* q, int len, T eps, bool swapped, T* v) {
  for (int j = 0; j < len; ++j) {
    const T qj = M::norms ? q[j] : T(0);
    v[j] = M::value(s[j], swapped ? qj : p, swapped ? p : qj, eps);
  }
}

template <class M, class T>
inline void metric_slopes(const T* s, T p, const T* q, int len, T eps, bool swapped, T* ds, T* dp) {
  for (int j = 0; j < len; ++j) {
    const T qj = M::norms ? q[j] : T(0);
    M::slopes(s[j], swapped ? qj : p, swapped ? p : qj, eps, ds[j], dp[j]);
  }
}

#include "formulas.gen.h"

template <class T> struct Row {
  const Tile<T>& tile;
  int64_t i;
  T* s;
  T p;

  Row(const Tile<T>& t, int64_t i) : tile(t), i(i), s(t.s + i * t.stride), p(t.p ? t.p[i] : T(0)) {}
  const T* q(int64_t j) const { return tile.q ? tile.q + j : nullptr; }

  void values(int64_t j, int len, bool swapped, T* v) const {
    with_metric(tile.metric, [&](auto m) {
      metric_values<decltype(m)>(s + j, p, q(j), len, tile.eps, swapped, v);
    });
  }
  // The same for listed columns only.
  void values(int64_t j, const int* at, int count, bool swapped, T* v) const {
    T few_s[CHUNK], few_q[CHUNK];
    for (int k = 0; k < count; ++k) few_s[k] = s[j + at[k]];
    for (int k = 0; k < count && tile.q; ++k) few_q[k] = tile.q[j + at[k]];
    with_metric(tile.metric, [&](auto m) {
      metric_values<decltype(m)>(few_s, p, few_q, count, tile.eps, swapped, v);
    });
  }
  void slopes(int64_t j, int len, bool swapped, T* ds, T* dp) const {
    with_metric(tile.metric, [&](auto m) {
      metric_slopes<decltype(m)>(s + j, p, q(j), len, tile.eps, swapped, ds, dp);
    });
  }
};

// Positions in [j, j + len) of the positives of row i, and of the point itself (-1 if it is not there).
struct Positives {
  int at[CHUNK];
  int count = 0, self = -1;

  template <class T> Positives(const Row<T>& row, int64_t j, int len) {
    const int64_t label = row.tile.labels[row.i];
    const int64_t* l = row.tile.ref_labels + j;
    const int64_t own = row.tile.diagonal < 0 ? -1 : row.tile.diagonal + row.i - j;
    for (int b = 0; b < len; b += 64) {
      const int end = b + 64 < len ? b + 64 : len;
      int64_t hits = 0;
      for (int k = b; k < end; ++k) hits += l[k] == label;
      if (!hits) continue;
      for (int k = b; k < end; ++k)
        if (l[k] == label && k != own) at[count++] = k;
    }
    if (own >= 0 && own < len) self = int(own);
  }
};

// ---- statistics ----------------------------------------------------------------------------------------------------

// A statistic as a formula reads it: an empty log-sum-exp is the lowest number.
template <class T> inline T finite(T x) { return x < std::numeric_limits<T>::lowest() ? std::numeric_limits<T>::lowest() : x; }

template <class T> struct Accumulator {
  double sum = 0;
  T top = -infinity<T>;
  int64_t index = -1;
  bool nan = false;
};

template <class T> constexpr T neutral(Kind kind) {
  return kind == Kind::lse || kind == Kind::largest ? -infinity<T> : kind == Kind::smallest ? infinity<T> : T(0);
}

template <class T, class F> inline T fold(T (&lane)[LANES], F f) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] = f(lane[l], lane[l + half]);
  return lane[0];
}

// Adds the first `len` values of t to the statistic. t has room for a multiple of LANES.
template <Kind kind, class T, class At> inline void reduce(T* t, int len, At at, Accumulator<T>& a) {
  const int padded = (len + LANES - 1) / LANES * LANES;
  for (int j = len; j < padded; ++j) t[j] = neutral<T>(kind);
  T lane[LANES];
  if constexpr (kind == Kind::total || kind == Kind::count) {
    for (int l = 0; l < LANES; ++l) lane[l] = T(0);
    for (int j = 0; j < padded; j += LANES)
      for (int l = 0; l < LANES; ++l) lane[l] += kind == Kind::total ? t[j + l] : (t[j + l] != T(0) ? T(1) : T(0));
    a.sum += fold(lane, [](T x, T y) { return x + y; });
    return;
  }
  const T sign = kind == Kind::smallest ? T(-1) : T(1);
  for (int l = 0; l < LANES; ++l) lane[l] = -infinity<T>;
  for (int j = 0; j < padded; j += LANES)
    for (int l = 0; l < LANES; ++l) {
      const T x = sign * t[j + l];
      lane[l] = x > lane[l] ? x : lane[l];
    }
  const T top = fold(lane, [](T x, T y) { return y > x ? y : x; });
  if constexpr (kind == Kind::lse) {
    if (top > a.top) {
      a.sum *= a.top == -infinity<T> ? 1.0 : std::exp(double(a.top) - double(top));
      a.top = top;
    }
    const T shift = a.top == -infinity<T> ? T(0) : a.top;
    for (int l = 0; l < LANES; ++l) lane[l] = T(0);
    for (int j = 0; j < padded; j += LANES)
      for (int l = 0; l < LANES; ++l) lane[l] += fn::exp(t[j + l] - shift);
    a.sum += fold(lane, [](T x, T y) { return x + y; });
  } else {
    T spoiled = T(0);
    for (int j = 0; j < len; ++j) spoiled += t[j] != t[j] ? T(1) : T(0);
    if (spoiled > T(0) && !a.nan) {
      for (int j = 0; j < len && !a.nan; ++j)
        if (t[j] != t[j]) a.nan = true, a.index = at(j);
    }
    if (a.nan || !(top > a.top || (a.index < 0 && len > 0))) return;
    for (int j = 0; j < len; ++j)
      if (sign * t[j] == top && at(j) >= 0) {
        a.top = top, a.index = at(j);
        return;
      }
  }
}

template <Kind kind, class T> inline T finish(const Accumulator<T>& a) {
  if constexpr (kind == Kind::total || kind == Kind::count) return T(a.sum);
  if constexpr (kind == Kind::lse) {
    if (a.sum == 0) return -infinity<T>;
    return T((a.top == -infinity<T> ? 0.0 : double(a.top)) + std::log(a.sum));
  }
  if (a.nan) return std::numeric_limits<T>::quiet_NaN();
  return kind == Kind::smallest ? -a.top : a.top;
}

// The scale of a log-sum-exp that was rounded to `value`.
template <class T> inline T scale_of(const Accumulator<T>& a, T value) {
  return std::isfinite(value) ? fn::exp(T(double(value) - double(a.top) - std::log(a.sum))) : T(1);
}

// t[k] = pair(v)[k] for the statistics on one side, at len values whose columns are at(0), at(1) ...
template <class S, Where side, class T, class RowOf, class ColOf>
inline void pair_values(const T* v, int len, RowOf row, ColOf col, const T* params, T (*t)[CHUNK]) {
  for (int j = 0; j < len; ++j) {
    T out[S::K];
    S::pair(v[j], [&](int k) { return row(k, j); }, [&](int k) { return col(k, j); }, params, out);
    each<S::K>([&](auto k) {
      if constexpr (S::side[k] == side) t[k][j] = out[k];
    });
  }
}

template <class S, class T>
void stage_stats(const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, const Output<T>& out) {
  const T* params = tile.params + S::first_param;
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= SERIAL_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    alignas(64) T v[CHUNK], few[CHUNK], t[S::K][CHUNK];
    const Row<T> row(tile, i);
    Accumulator<T> state[S::K];
    auto mine = [&](int k, int) { return finite(rows.values[k * rows.values_stride + i]); };
    for (int64_t j0 = 0; j0 < tile.n; j0 += CHUNK) {
      const int len = int(tile.n - j0 < CHUNK ? tile.n - j0 : CHUNK);
      const Positives positives(row, j0, len);
      if constexpr (has<S>(Where::neg)) {
        row.values(j0, len, false, v);
        auto other = [&](int k, int j) { return finite(cols.values[k * cols.values_stride + j0 + j]); };
        pair_values<S, Where::neg>(v, len, mine, other, params, t);
        each<S::K>([&](auto k) {
          if constexpr (S::side[k] == Where::neg) {
            for (int j = 0; j < positives.count; ++j) t[k][positives.at[j]] = neutral<T>(S::kind[k]);
            if (positives.self >= 0) t[k][positives.self] = neutral<T>(S::kind[k]);
            auto at = [&](int j) {
              return row.tile.ref_labels[j0 + j] == row.tile.labels[i] ? int64_t(-1) : j0 + j;
            };
            reduce<S::kind[k]>(t[k], len, at, state[k]);
          }
        });
      }
      if constexpr (has<S>(Where::pos)) {
        if (!positives.count) continue;
        row.values(j0, positives.at, positives.count, false, few);
        auto at = [&](int j) { return j0 + positives.at[j]; };
        auto other = [&](int k, int j) { return finite(cols.values[k * cols.values_stride + at(j)]); };
        pair_values<S, Where::pos>(few, positives.count, mine, other, params, t);
        each<S::K>([&](auto k) {
          if constexpr (S::side[k] == Where::pos) reduce<S::kind[k]>(t[k], positives.count, at, state[k]);
        });
      }
    }
    each<S::K>([&](auto k) {
      const T value = finish<S::kind[k]>(state[k]);
      out.values[k * out.values_stride + i] = value;
      if constexpr (S::kind[k] == Kind::lse) out.scale[k * out.scale_stride + i] = scale_of(state[k], value);
      if constexpr (S::kind[k] == Kind::largest || S::kind[k] == Kind::smallest)
        out.index[k * out.index_stride + i] = state[k].index;
    });
  }
}

// ---- weights -------------------------------------------------------------------------------------------------------

// Writes the values of pair for the log-sum-exps of stage S. They go through memory, and so are rounded as the statistic
// was made of them: contracted with the subtraction of the statistic they would be more exact, and the weights less.
template <class S, Where side, class T, class RowOf, class ColOf>
inline void stage_logits(T v, RowOf row, ColOf col, const T* params, T (*logits)[CHUNK], int j) {
  T t[S::K];
  S::pair(v, row, col, params + S::first_param, t);
  each<S::K>([&](auto k) {
    if constexpr (S::side[k] == side && S::kind[k] == Kind::lse) logits[S::first + k][j] = t[k];
  });
}

template <class S> constexpr bool has_logits(Where side) {
  for (int k = 0; k < S::K; ++k)
    if (S::side[k] == side && S::kind[k] == Kind::lse) return true;
  return false;
}

template <class Formula> struct Weights;

template <class... S> struct Weights<std::tuple<S...>> {
  static constexpr int K = (S::K + ...);

  // out[j] (+)= dL/dv of the pairs (i, at(j)), or with `swapped` of the pairs (at(j), i).
  template <Where side, bool swapped, bool add, class T, class At>
  static inline void pair_grads(const T* v, int len, const T* values, const T* grads, const int64_t* index, int64_t own,
                                const Side<T>& cols, At at, const T* params, T* out) {
    alignas(64) T logits[K][CHUNK];
    auto mine = [&](int k) { return values[k]; };
    if constexpr ((has_logits<S>(side) || ...)) {
      for (int j = 0; j < len; ++j) {
        const int64_t c = at(j);
        auto other = [&](int k) { return cols.values[k * cols.values_stride + c]; };
        if constexpr (swapped) (stage_logits<S, side>(v[j], other, mine, params, logits, j), ...);
        else (stage_logits<S, side>(v[j], mine, other, params, logits, j), ...);
      }
    }
    for (int j = 0; j < len; ++j) {
      const int64_t c = at(j);
      auto other = [&](int k) { return cols.values[k * cols.values_stride + c]; };
      auto logit = [&](int k) { return logits[k][j]; };
      T g;
      if constexpr (swapped) {
        auto grad = [&](int k) { return cols.grads[k * cols.grads_stride + c]; };
        auto extreme = [&](int k) { return cols.index[k * cols.index_stride + c] == own; };
        g = (stage_grad<S, side>(v[j], other, mine, grad, extreme, logit, params) + ...);
      } else {
        auto grad = [&](int k) { return grads[k]; };
        auto extreme = [&](int k) { return index[k] == c; };
        g = (stage_grad<S, side>(v[j], mine, other, grad, extreme, logit, params) + ...);
      }
      out[j] = add ? out[j] + g : g;
    }
  }

  template <bool both, class T> static void run(const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, T* norm_grad) {
    constexpr bool negatives = (has<S>(Where::neg) || ...), positive = (has<S>(Where::pos) || ...);
    const bool symmetric = !both || is_symmetric(tile.metric);
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= SERIAL_BELOW)
    for (int64_t i = 0; i < tile.m; ++i) {
      alignas(64) T v[CHUNK], back_v[CHUNK], few[CHUNK], few_g[CHUNK];
      alignas(64) T there[CHUNK], back[CHUNK], ds[CHUNK], dp[CHUNK], back_ds[CHUNK], back_dp[CHUNK];
      T values[K], grads[K];
      int64_t index[K];
      for (int k = 0; k < K; ++k) {
        values[k] = rows.values[k * rows.values_stride + i];
        grads[k] = rows.grads[k * rows.grads_stride + i];
        index[k] = rows.index ? rows.index[k * rows.index_stride + i] : -1;
      }
      const Row<T> row(tile, i);
      const int64_t own = tile.row + i;
      T* reverse_v = symmetric ? v : back_v;
      T* reverse_g = symmetric ? there : back;
      double by_norm = 0;
      for (int64_t j0 = 0; j0 < tile.n; j0 += CHUNK) {
        const int len = int(tile.n - j0 < CHUNK ? tile.n - j0 : CHUNK);
        const Positives positives(row, j0, len);
        row.values(j0, len, false, v);
        if (!symmetric) row.values(j0, len, true, back_v);
        auto column = [&](int j) { return j0 + j; };
        if constexpr (negatives) {
          pair_grads<Where::neg, false, false>(v, len, values, grads, index, own, cols, column, tile.params, there);
          if constexpr (both) {
            if (symmetric)
              pair_grads<Where::neg, true, true>(v, len, values, grads, index, own, cols, column, tile.params, there);
            else
              pair_grads<Where::neg, true, false>(back_v, len, values, grads, index, own, cols, column, tile.params,
                                                  back);
          }
        } else {
          for (int j = 0; j < len; ++j) there[j] = T(0);
          if (!symmetric)
            for (int j = 0; j < len; ++j) back[j] = T(0);
        }
        auto listed = [&](int j) { return j0 + positives.at[j]; };
        const int count = positives.count;
        for (int j = 0; j < count; ++j) few_g[j] = T(0);
        if constexpr (positive) {
          for (int j = 0; j < count; ++j) few[j] = v[positives.at[j]];
          pair_grads<Where::pos, false, false>(few, count, values, grads, index, own, cols, listed, tile.params, few_g);
        }
        for (int j = 0; j < count; ++j) there[positives.at[j]] = few_g[j];
        if constexpr (both) {
          for (int j = 0; j < count; ++j) few_g[j] = symmetric ? few_g[j] : T(0);
          if constexpr (positive) {
            for (int j = 0; j < count; ++j) few[j] = reverse_v[positives.at[j]];
            pair_grads<Where::pos, true, true>(few, count, values, grads, index, own, cols, listed, tile.params, few_g);
          }
          for (int j = 0; j < count; ++j) reverse_g[positives.at[j]] = few_g[j];
        }
        if (positives.self >= 0) there[positives.self] = reverse_g[positives.self] = T(0);
        row.slopes(j0, len, false, ds, dp);
        if (!symmetric) row.slopes(j0, len, true, back_ds, back_dp);
        if (norm_grad) by_norm += norm_share(there, dp, back, back_ds, len, symmetric);
        T* s = row.s + j0;
        if (symmetric)
          for (int j = 0; j < len; ++j) s[j] = there[j] * ds[j];
        else
          for (int j = 0; j < len; ++j) s[j] = there[j] * ds[j] + back[j] * back_ds[j];
      }
      if (norm_grad) norm_grad[i] = T(by_norm);
    }
  }

  // A row's share of the gradient with respect to its squared norm: as p in (i, j), and as q, by -ds/2, in (j, i). Where
  // the metric is symmetric both are the same function of the sum of the two directions.
  template <class T>
  static double norm_share(const T* there, const T* dp, const T* back, const T* back_ds, int len, bool symmetric) {
    double sum = 0;
    for (int j = 0; j < len; ++j) {
      sum += double(there[j] * dp[j]);
      if (!symmetric) sum -= 0.5 * double(back[j] * back_ds[j]);
    }
    return sum;
  }
};

// ---- gradients with respect to the statistics that a stage reads -----------------------------------------------------

template <class S, Where side, bool swapped, class T>
inline void add_input_grads(T v, int64_t i, int64_t c, const Side<T>& rows, const Side<T>& cols, const T* params,
                            double* sums) {
  constexpr int inputs = swapped ? S::COLS : S::ROWS;
  auto mine = [&](int k) { return rows.values[k * rows.values_stride + i]; };
  auto other = [&](int k) { return cols.values[k * cols.values_stride + c]; };
  T d[S::K * inputs];
  if constexpr (swapped) S::dcol(v, other, mine, params, d);
  else S::drow(v, mine, other, params, d);
  for (int k = 0; k < S::K; ++k) {
    if (S::side[k] != side) continue;
    const T g = swapped ? cols.grads[(S::first + k) * cols.grads_stride + c]
                        : rows.grads[(S::first + k) * rows.grads_stride + i];
    for (int r = 0; r < inputs; ++r) sums[r] += double(g * d[k * inputs + r]);
  }
}

template <class S, bool swapped, class T>
void stage_input_grads(const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, const Output<T>& out) {
  constexpr int inputs = swapped ? S::COLS : S::ROWS;
  const T* params = tile.params + S::first_param;
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= SERIAL_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    alignas(64) T v[CHUNK];
    const Row<T> row(tile, i);
    double sums[inputs] = {};
    for (int64_t j0 = 0; j0 < tile.n; j0 += CHUNK) {
      const int len = int(tile.n - j0 < CHUNK ? tile.n - j0 : CHUNK);
      const Positives positives(row, j0, len);
      if constexpr (has<S>(Where::pos)) {
        row.values(j0, positives.at, positives.count, swapped, v);
        for (int j = 0; j < positives.count; ++j)
          add_input_grads<S, Where::pos, swapped>(v[j], i, j0 + positives.at[j], rows, cols, params, sums);
      }
      if constexpr (has<S>(Where::neg)) {
        row.values(j0, len, swapped, v);
        for (int j = 0; j < len; ++j)
          if (tile.ref_labels[j0 + j] != tile.labels[i])
            add_input_grads<S, Where::neg, swapped>(v[j], i, j0 + j, rows, cols, params, sums);
      }
    }
    for (int r = 0; r < inputs; ++r) out.values[r * out.values_stride + i] = T(sums[r]);
  }
}

// ---- epilogue: statistics to a number ---------------------------------------------------------------------------------

// The loss of n anchors, and its gradient with respect to each of their K statistics.
template <class R, class T, class... S>
double reduce_rows(const Side<T>& rows, int64_t n, const double* params, const Window* windows, const Output<T>& grads) {
  constexpr int K = (S::K + ...);
  double sum = 0, number = 0;
  if constexpr (R::per_anchor) {
    for (int64_t i = 0; i < n; ++i) {
      Dual<T, K> stats[K];
      for (int k = 0; k < K; ++k) {
        stats[k] = Dual<T, K>(rows.values[k * rows.values_stride + i]);
        stats[k].d[k] = T(1);
      }
      const Dual<T, K> loss = R::loss(stats, params);
      const bool outside = loss.v <= T(windows->low) || loss.v >= T(windows->high);
      if (!outside) sum += double(loss.v), number += 1;
      for (int k = 0; k < K; ++k) grads.values[k * grads.values_stride + i] = outside ? T(0) : loss.d[k];
    }
    if (!windows->mean) return sum;
    number = number > 0 ? number : 1;
    for (int k = 0; k < K; ++k)
      for (int64_t i = 0; i < n; ++i) grads.values[k * grads.values_stride + i] *= T(1 / number);
    return sum / number;
  }
  // The last stage has a sum and a count for each sub-loss.
  using Last = std::tuple_element_t<sizeof...(S) - 1, std::tuple<S...>>;
  for (int k = 0; k < K; ++k)
    for (int64_t i = 0; i < n; ++i) grads.values[k * grads.values_stride + i] = T(0);
  for (int k = 0; k < Last::K; k += 2, ++windows) {
    const T* totals = rows.values + (Last::first + k) * rows.values_stride;
    const T* counts = totals + rows.values_stride;
    double total = 0, count = 0;
    for (int64_t i = 0; i < n; ++i) total += double(totals[i]), count += double(counts[i]);
    const double divisor = windows->mean && count > 0 ? count : 1;
    sum += total / divisor;
    for (int64_t i = 0; i < n; ++i) grads.values[(Last::first + k) * grads.values_stride + i] = T(1 / divisor);
  }
  return sum;
}

// ---- pair values by themselves, for the kernels of terms -------------------------------------------------------------

// Writes the values of a tile of products.
template <class T> void pair_values(const Tile<T>& tile, T* out, int64_t out_stride) {
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= SERIAL_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    const Row<T> row(tile, i);
    for (int64_t j = 0; j < tile.n; j += CHUNK) {
      const int len = int(tile.n - j < CHUNK ? tile.n - j : CHUNK);
      row.values(j, len, false, out + i * out_stride + j);
    }
  }
}

// Overwrites products with g * dv/ds; a row's sum of g * dv/dp goes to norm_grad unless that is null.
template <class T> void pair_slopes(const Tile<T>& tile, const T* g, int64_t g_stride, T* norm_grad) {
#pragma omp parallel for schedule(static) num_threads(tile.threads) if (tile.m * tile.n >= SERIAL_BELOW)
  for (int64_t i = 0; i < tile.m; ++i) {
    alignas(64) T ds[CHUNK], dp[CHUNK];
    const Row<T> row(tile, i);
    double by_norm = 0;
    for (int64_t j0 = 0; j0 < tile.n; j0 += CHUNK) {
      const int len = int(tile.n - j0 < CHUNK ? tile.n - j0 : CHUNK);
      row.slopes(j0, len, false, ds, dp);
      const T* mine = g + i * g_stride + j0;
      if (norm_grad)
        for (int j = 0; j < len; ++j) by_norm += double(mine[j] * dp[j]);
      for (int j = 0; j < len; ++j) row.s[j0 + j] = mine[j] * ds[j];
    }
    if (norm_grad) norm_grad[i] = T(by_norm);
  }
}

// ---- one table entry a formula ---------------------------------------------------------------------------------------

template <class Formula, class R, class T> struct Entry;

template <class... S, class R, class T> struct Entry<std::tuple<S...>, R, T> {
  static void stats(int stage, const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, const Output<T>& out) {
    int number = 0;
    ((number++ == stage ? stage_stats<S>(tile, rows, cols, out) : void()), ...);
  }
  static void weights(const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, bool both, T* norm_grad) {
    using W = Weights<std::tuple<S...>>;
    both ? W::template run<true>(tile, rows, cols, norm_grad) : W::template run<false>(tile, rows, cols, norm_grad);
  }
  static void input_grads(int stage, const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, bool swapped,
                          const Output<T>& out) {
    int number = 0;
    ((number++ == stage ? one<S>(tile, rows, cols, swapped, out) : void()), ...);
  }
  template <class One>
  static void one(const Tile<T>& tile, const Side<T>& rows, const Side<T>& cols, bool swapped, const Output<T>& out) {
    if constexpr (One::has_dcol)
      if (swapped) return stage_input_grads<One, true>(tile, rows, cols, out);
    if constexpr (One::has_drow)
      if (!swapped) return stage_input_grads<One, false>(tile, rows, cols, out);
  }
  static constexpr Kernels<T> kernels = {stats, weights, input_grads, reduce_rows<R, T, S...>};
};

}  // namespace
