// What the row kernels of every device know of the statistics of a stage.
#pragma once
#include <type_traits>
#include <utility>

#include "fn.h"
#include "tile.h"

namespace {

template <class F, int... k> MK_FN void each(std::integer_sequence<int, k...>, F f) {
  (f(std::integral_constant<int, k>{}), ...);
}
template <int K, class F> MK_FN void each(F f) { each(std::make_integer_sequence<int, K>{}, f); }

template <class S> constexpr bool has(Where side) {
  for (int k = 0; k < S::K; ++k)
    if (S::side[k] == side) return true;
  return false;
}

// The part of dL/dv of one pair that goes through the statistics of stage S on one side. row(k), col(k) are the statistics of
// the anchor and of the other point, grad(k) the gradients, extreme(k) whether the pair is the extreme of its anchor, and
// logit(k) the value of pair for a log-sum-exp.
template <class S, Where side, class T, class RowOf, class ColOf, class Grad, class Extreme, class Logit>
MK_FN T stage_grad(T v, RowOf row, ColOf col, Grad grad, Extreme extreme, Logit logit, const T* params) {
  T d[S::K], sum = T(0);
  S::dpair(v, row, col, params + S::first_param, d);
  each<S::K>([&](auto k) {
    if constexpr (S::side[k] == side) {
      constexpr int g = S::first + k;
      if constexpr (S::kind[k] == Kind::total) sum += grad(g) * d[k];
      if constexpr (S::kind[k] == Kind::lse) sum += grad(g) * d[k] * fn::exp(fn::difference(logit(g), row(g)));
      if constexpr (S::kind[k] == Kind::largest || S::kind[k] == Kind::smallest)
        sum += extreme(g) ? grad(g) * d[k] : T(0);
    }
  });
  return sum;
}

}  // namespace
