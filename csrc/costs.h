// What a triplet costs by the gap u_ap - u_an + margin, and the slope of that.
#pragma once
#include <type_traits>

#include "fn.h"
#include "values.h"

namespace {

template <Shape shape, class T> MK_FN T cost(T gap) {
  const T positive = gap > T(0) ? gap : T(0);
  if constexpr (shape == Shape::softplus) return fn::softplus(gap);
  if constexpr (shape == Shape::squared_hinge) return positive * positive;
  return positive;
}
template <Shape shape, class T> MK_FN T slope(T gap) {
  if constexpr (shape == Shape::softplus) return fn::sigmoid(gap);
  if constexpr (shape == Shape::squared_hinge) return gap > T(0) ? T(2) * gap : T(0);
  return gap > T(0) ? T(1) : T(0);
}

template <class T> MK_FN bool inside(T value, const Cost<T>& of) { return (value > of.low) & (value < of.high); }
// Whether every pair counts whose slope is not 0.
template <class T> MK_FN bool every_slope_counts(const Cost<T>& of) {
  return of.low <= T(0) && of.high == std::numeric_limits<T>::infinity();
}

template <class T, class F> inline void with_shape(Shape shape, F f) {
  switch (shape) {
    case Shape::hinge: return f(std::integral_constant<Shape, Shape::hinge>{});
    case Shape::squared_hinge: return f(std::integral_constant<Shape, Shape::squared_hinge>{});
    case Shape::softplus: return f(std::integral_constant<Shape, Shape::softplus>{});
  }
}

}  // namespace
