// The row kernels of the elementwise family, for any formula and metric: one block a row.
#pragma once
#include <tuple>
#include <vector>

#include "../stages.h"
#include "block.cuh"

namespace {

#include "formulas.gen.h"

// The parameters of all stages of a formula.
template <class T> struct Params {
  T of[16];
};

template <class T> struct Row {
  const Tile<T>& tile;
  int64_t i, label, self;  // self is the column of the point itself, or -1
  T* s;
  T p;

  __device__ Row(const Tile<T>& tile)
      : tile(tile), i(blockIdx.x), label(tile.labels[i]), self(tile.diagonal < 0 ? -1 : tile.diagonal + i),
        s(tile.s + i * tile.stride), p(tile.p ? tile.p[i] : T(0)) {}

  __device__ T q(int64_t j) const { return tile.q ? tile.q[j] : T(0); }
  // The pair value, or with `swapped` that of j as the anchor.
  __device__ T value(int64_t j, bool swapped) const {
    T v{};
    with_metric(tile.metric, [&](auto m) {
      v = swapped ? decltype(m)::value(s[j], q(j), p, tile.eps) : decltype(m)::value(s[j], p, q(j), tile.eps);
    });
    return v;
  }
  __device__ void slopes(int64_t j, bool swapped, T& ds, T& dp) const {
    with_metric(tile.metric, [&](auto m) {
      if (swapped) decltype(m)::slopes(s[j], q(j), p, tile.eps, ds, dp);
      else decltype(m)::slopes(s[j], p, q(j), tile.eps, ds, dp);
    });
  }
  // visit(side, j) for the columns of a thread that are pairs, and skip(j) for the point itself.
  template <class Visit, class Skip> __device__ void each_pair(Visit visit, Skip skip) const {
    for (int64_t j = threadIdx.x; j < tile.n; j += gpu::THREADS) {
      if (tile.ref_labels[j] != label) visit(std::integral_constant<Where, Where::neg>{}, j);
      else if (j != self) visit(std::integral_constant<Where, Where::pos>{}, j);
      else skip(j);
    }
  }
  template <class Visit> __device__ void each_pair(Visit visit) const {
    each_pair(visit, [](int64_t) {});
  }
};

template <class T> __device__ T& entry(T* matrix, int64_t stride, int k, int64_t i) { return matrix[k * stride + i]; }

// ---- statistics: what a thread has of each, how they come together, and what is written -------------------------------

template <Kind kind, class T> struct State {  // largest and smallest: the first column that has the value, or a NaN
  static constexpr T sign = kind == Kind::smallest ? T(-1) : T(1);
  T top = -std::numeric_limits<T>::infinity();
  int32_t nan = 0;
  int64_t column = -1;

  __device__ void add(T t, int64_t j) {
    if (nan || (t == t && column >= 0 && !(sign * t > top))) return;
    top = sign * t, column = j, nan = t != t;
  }
  static __device__ State better(const State& a, const State& b) {
    if (a.column < 0 || b.column < 0) return a.column < 0 ? b : a;
    if (a.nan != b.nan) return a.nan ? a : b;
    if (a.nan || a.top == b.top) return a.column < b.column ? a : b;
    return a.top > b.top ? a : b;
  }
  __device__ void write(const Output<T>& out, int k, int64_t i) const {
    const State all = reduced(*this, [](const State& a, const State& b) { return better(a, b); });
    if (threadIdx.x) return;
    entry(out.values, out.values_stride, k, i) = sign * all.top;
    entry(out.index, out.index_stride, k, i) = all.column;
  }
};

template <class T> struct State<Kind::total, T> {
  Sum<T> sum;

  __device__ void add(T t, int64_t) { sum.add(t); }
  __device__ void write(const Output<T>& out, int k, int64_t i) const {
    const double all = summed(sum.value());
    if (threadIdx.x == 0) entry(out.values, out.values_stride, k, i) = T(all);
  }
};

template <class T> struct State<Kind::count, T> {
  int64_t number = 0;

  __device__ void add(T t, int64_t) { number += t != T(0); }
  __device__ void write(const Output<T>& out, int k, int64_t i) const {
    const int64_t all = summed(number);
    if (threadIdx.x == 0) entry(out.values, out.values_stride, k, i) = T(all);
  }
};

// sum * e^top
template <class T> struct Exponentials {
  double sum;
  T top;

  static __device__ Exponentials together(const Exponentials& a, const Exponentials& b) {
    const T top = a.top < b.top ? b.top : a.top;
    return {a.below(top) + b.below(top), top};
  }
  __device__ double below(T higher) const {
    return top == higher ? sum : sum * double(fn::exp(fn::difference(top, higher)));
  }
};

template <class T> struct State<Kind::lse, T> {
  Sum<T> sum;
  T top = std::numeric_limits<T>::lowest();

  __device__ void add(T t, int64_t) {
    if (t > top) {
      sum.scale(fn::exp(fn::difference(top, t)));
      top = t;
    }
    sum.add(fn::exp(fn::difference(t, top)));
  }
  __device__ void write(const Output<T>& out, int k, int64_t i) const {
    using All = Exponentials<T>;
    const All all = reduced(All{sum.value(), top}, [](const All& a, const All& b) { return All::together(a, b); });
    if (threadIdx.x) return;
    const double logarithm = fn::log(all.sum);
    const T value = T(double(all.top) + logarithm);
    entry(out.values, out.values_stride, k, i) = all.sum == 0 ? -std::numeric_limits<T>::infinity() : value;
    const bool finite = all.sum != 0 && value - value == T(0);
    entry(out.scale, out.scale_stride, k, i) = finite ? fn::exp(T(double(value) - double(all.top) - logarithm)) : T(1);
  }
};

template <int k, class S, class T> struct Numbered {
  State<S::kind[k], T> state;
};

template <class S, class T, class Number> struct States;
template <class S, class T, int... k> struct States<S, T, std::integer_sequence<int, k...>> : Numbered<k, S, T>... {
  template <int number> __device__ auto& at() { return static_cast<Numbered<number, S, T>&>(*this).state; }
};

template <class S, class T>
__global__ void stat_rows(Tile<T> tile, Params<T> params, Side<T> rows, Side<T> cols, Output<T> out) {
  const Row<T> row(tile);
  States<S, T, std::make_integer_sequence<int, S::K>> states;
  const auto mine = [&](int k) { return entry(rows.values, rows.values_stride, k, row.i); };
  row.each_pair([&](auto side, int64_t j) {
    constexpr Where where = decltype(side)::value;
    if constexpr (has<S>(where)) {
      const auto other = [&](int k) { return entry(cols.values, cols.values_stride, k, j); };
      T t[S::K];
      S::pair(row.value(j, false), mine, other, params.of + S::first_param, t);
      each<S::K>([&](auto k) {
        if constexpr (S::side[k] == where) states.template at<k>().add(t[k], j);
      });
    }
  });
  each<S::K>([&](auto k) { states.template at<k>().write(out, k, row.i); });
}

// ---- weights -----------------------------------------------------------------------------------------------------------

template <class Formula> struct Weights;

template <class... S> struct Weights<std::tuple<S...>> {
  static constexpr int K = (S::K + ...);

  // dL/dv of a pair by way of the statistics of its anchor, from what is known of the anchor and of the other point.
  template <Where side, class T, class RowOf, class ColOf, class Grad, class Extreme>
  static __device__ T pair(T v, RowOf row, ColOf col, Grad grad, Extreme extreme, const Params<T>& params) {
    return (stage<S, side>(v, row, col, grad, extreme, params.of) + ...);
  }
  template <class One, Where side, class T, class RowOf, class ColOf, class Grad, class Extreme>
  static __device__ T stage(T v, RowOf row, ColOf col, Grad grad, Extreme extreme, const T* params) {
    if constexpr (!has<One>(side)) return T(0);
    T t[One::K];
    One::pair(v, row, col, params + One::first_param, t);
    return stage_grad<One, side>(v, row, col, grad, extreme, [&](int k) { return t[k - One::first]; }, params);
  }
};

template <class Formula, bool both, class T>
__global__ void weight_rows(Tile<T> tile, Params<T> params, Side<T> rows, Side<T> cols, T* norm_grad) {
  using W = Weights<Formula>;
  const Row<T> row(tile);
  const int64_t own = tile.row + row.i;
  const bool symmetric = is_symmetric(tile.metric);
  T values[W::K], grads[W::K];
  int64_t index[W::K];
  for (int k = 0; k < W::K; ++k) {
    values[k] = entry(rows.values, rows.values_stride, k, row.i);
    grads[k] = entry(rows.grads, rows.grads_stride, k, row.i);
    index[k] = rows.index ? entry(rows.index, rows.index_stride, k, row.i) : -1;
  }
  Sum<T> by_norm;
  const auto mine = [&](int k) { return values[k]; };
  row.each_pair(
      [&](auto side, int64_t j) {
        constexpr Where where = decltype(side)::value;
        const auto other = [&](int k) { return entry(cols.values, cols.values_stride, k, j); };
        const T v = row.value(j, false);
        T ds, dp;
        row.slopes(j, false, ds, dp);
        const T there = W::template pair<where>(
            v, mine, other, [&](int k) { return grads[k]; }, [&](int k) { return index[k] == j; }, params);
        T weight = there * ds, norm = there * dp;
        if constexpr (both) {
          const T back_v = symmetric ? v : row.value(j, true);
          const T back = W::template pair<where>(
              back_v, other, mine, [&](int k) { return entry(cols.grads, cols.grads_stride, k, j); },
              [&](int k) { return entry(cols.index, cols.index_stride, k, j) == own; }, params);
          if (symmetric) {
            weight = (there + back) * ds, norm = (there + back) * dp;
          } else {
            T back_ds, back_dp;
            row.slopes(j, true, back_ds, back_dp);
            weight += back * back_ds;
            norm -= T(0.5) * back * back_ds;
          }
        }
        row.s[j] = weight;
        by_norm.add(norm);
      },
      [&](int64_t j) { row.s[j] = T(0); });
  if (!norm_grad) return;
  const double sum = summed(by_norm.value());
  if (threadIdx.x == 0) norm_grad[row.i] = T(sum);
}

// ---- gradients with respect to the statistics that a stage reads -------------------------------------------------------

template <class S, bool swapped, class T>
__global__ void input_grad_rows(Tile<T> tile, Params<T> params, Side<T> rows, Side<T> cols, Output<T> out) {
  constexpr int inputs = swapped ? S::COLS : S::ROWS;
  const Row<T> row(tile);
  Sum<T> sums[inputs];
  const auto mine = [&](int k) { return entry(rows.values, rows.values_stride, k, row.i); };
  row.each_pair([&](auto side, int64_t j) {
    constexpr Where where = decltype(side)::value;
    if constexpr (has<S>(where)) {
      const auto other = [&](int k) { return entry(cols.values, cols.values_stride, k, j); };
      T d[S::K * inputs];
      if constexpr (swapped) S::dcol(row.value(j, true), other, mine, params.of + S::first_param, d);
      else S::drow(row.value(j, false), mine, other, params.of + S::first_param, d);
      each<S::K>([&](auto k) {
        if constexpr (S::side[k] == where) {
          const T g = swapped ? entry(cols.grads, cols.grads_stride, S::first + k, j)
                              : entry(rows.grads, rows.grads_stride, S::first + k, row.i);
          for (int r = 0; r < inputs; ++r) sums[r].add(g * d[k * inputs + r]);
        }
      });
    }
  });
  for (int r = 0; r < inputs; ++r) {
    const double sum = summed(sums[r].value());
    if (threadIdx.x == 0) entry(out.values, out.values_stride, r, row.i) = T(sum);
  }
}

// ---- one table entry a formula -----------------------------------------------------------------------------------------

template <class Formula, class T> struct Entry;

template <class... S, class T> struct Entry<std::tuple<S...>, T> {
  using Given = gpu::RowArguments<T>;

  static void stats(const Given& a, int stage, const Output<T>& out) {
    int number = 0;
    ((number++ == stage ? start(a, stat_rows<S, T>, out) : void()), ...);
  }
  static void weights(const Given& a, bool both, T* norm_grad) {
    using Formula = std::tuple<S...>;
    both ? start(a, weight_rows<Formula, true, T>, norm_grad) : start(a, weight_rows<Formula, false, T>, norm_grad);
  }
  static void input_grads(const Given& a, int stage, bool swapped, const Output<T>& out) {
    int number = 0;
    ((number++ == stage ? one<S>(a, swapped, out) : void()), ...);
  }
  template <class One> static void one(const Given& a, bool swapped, const Output<T>& out) {
    if constexpr (One::has_dcol)
      if (swapped) start(a, input_grad_rows<One, true, T>, out);
    if constexpr (One::has_drow)
      if (!swapped) start(a, input_grad_rows<One, false, T>, out);
  }
  template <class Kernel, class Out> static void start(const Given& a, Kernel kernel, const Out& out) {
    Params<T> params{};
    constexpr size_t most = sizeof(params.of) / sizeof(T);
    if (a.params.size() > most)
      throw std::runtime_error("params: expected at most " + std::to_string(most) + ", got " + std::to_string(a.params.size()));
    std::copy(a.params.begin(), a.params.end(), params.of);
    gpu::launch(a.stream, gpu::block_each(a.tile.m), kernel, a.tile, params, a.rows, a.cols, out);
  }
};

}  // namespace
