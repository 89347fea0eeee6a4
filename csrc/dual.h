// Numbers that carry their derivatives: the gradient of a row's loss with respect to its statistics comes out of the one
// formula, evaluated once.
#pragma once
#include "fn.h"

template <class T, int K> struct Dual {
  T v;
  T d[K];

  Dual() = default;
  Dual(T value) : v(value), d{} {}

  // f(*this), given f' there.
  Dual map(T value, T slope) const {
    Dual out(value);
    for (int k = 0; k < K; ++k) out.d[k] = slope * d[k];
    return out;
  }
  // f(*this, b), given both partial derivatives.
  Dual map(const Dual& b, T value, T slope, T b_slope) const {
    Dual out(value);
    for (int k = 0; k < K; ++k) out.d[k] = slope * d[k] + b_slope * b.d[k];
    return out;
  }
};

#define DUAL template <class T, int K> inline Dual<T, K>
#define D Dual<T, K>
DUAL operator+(const D& a, const D& b) { return a.map(b, a.v + b.v, T(1), T(1)); }
DUAL operator-(const D& a, const D& b) { return a.map(b, a.v - b.v, T(1), T(-1)); }
DUAL operator*(const D& a, const D& b) { return a.map(b, a.v * b.v, b.v, a.v); }
DUAL operator/(const D& a, const D& b) { return a.map(b, a.v / b.v, T(1) / b.v, -a.v / (b.v * b.v)); }
DUAL operator-(const D& a) { return a.map(-a.v, T(-1)); }
template <class T, int K> inline bool operator<(const D& a, const D& b) { return a.v < b.v; }
template <class T, int K> inline bool operator<=(const D& a, const D& b) { return a.v <= b.v; }
template <class T, int K> inline bool operator>(const D& a, const D& b) { return a.v > b.v; }
template <class T, int K> inline bool operator>=(const D& a, const D& b) { return a.v >= b.v; }

namespace fn {
DUAL exp(const D& a) { return a.map(exp(a.v), exp(a.v)); }
DUAL log(const D& a) { return a.map(log(a.v), T(1) / a.v); }
DUAL sqrt(const D& a) { return a.map(sqrt(a.v), T(0.5) / sqrt(a.v)); }
DUAL abs(const D& a) { return a.map(abs(a.v), a.v < T(0) ? T(-1) : T(1)); }
DUAL relu(const D& a) { return a.map(relu(a.v), step(a.v)); }
DUAL step(const D& a) { return D(step(a.v)); }
DUAL stop(const D& a) { return D(a.v); }
DUAL sigmoid(const D& a) { return a.map(sigmoid(a.v), sigmoid(a.v) * sigmoid(-a.v)); }
DUAL softplus(const D& a) { return a.map(softplus(a.v), sigmoid(a.v)); }
DUAL maximum(const D& a, const D& b) { return a.v < b.v ? b : a; }
DUAL minimum(const D& a, const D& b) { return b.v < a.v ? b : a; }
DUAL within(const D& a, const D& low, const D& high) { return D(within(a.v, low.v, high.v)); }
DUAL logaddexp(const D& a, const D& b) {
  const T sum = logaddexp(a.v, b.v);
  return a.map(b, sum, exp(a.v - sum), exp(b.v - sum));
}
}  // namespace fn
#undef DUAL
#undef D
