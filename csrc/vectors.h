// Kernels of metric_kernels/vectors.py: distances that are no function of inner products.
//
// A block is a few rows of the result by as many columns as stay in the first-level cache. Points are columns in the
// forward pass and features are columns in the backward pass, so that a loop runs along contiguous numbers, without any
// reduction, for every distance, and no block depends on another.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "fn.h"
#include "points.h"
#include "rows.h"

namespace {

constexpr int BLOCK_ROWS = 8;
template <class T> constexpr int BLOCK_WIDTH = 2048 / sizeof(T);
// So many numbers are added up before they join the rest, since the rounding of a sum grows with its length.
constexpr int64_t DEPTH = 256;
constexpr int64_t ONE_THREAD_UP_TO = 1 << 14;
template <class T> constexpr T smallest = std::numeric_limits<T>::min();

// ---- functions of a coordinate -----------------------------------------------------------------------------------------

// The larger of two numbers >= 0; a NaN without a sign is larger than all. Bits of such floats are in the order of floats.
template <class T> inline T larger(T a, T b) {
  using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Bits x, y;
  std::memcpy(&x, &a, sizeof(T));
  std::memcpy(&y, &b, sizeof(T));
  x = x > y ? x : y;
  std::memcpy(&a, &x, sizeof(T));
  return a;
}

// log u for u = 1 + t >= 0, where t may be known better than u.
inline double log_beside_one(double u, double t) { return std::abs(t) < 0.5 ? std::log1p(t) : std::log(u); }

inline float log_beside_one(float u, float t) {
  const bool tiny = u < smallest<float>;
  const float normal = tiny ? u * 8388608.0f : u;
  uint32_t bits;
  std::memcpy(&bits, &normal, 4);
  // The power of two that leaves a number between the roots of 1/2 and of 2.
  const int32_t power = int32_t(bits - 0x3f3504f3u) >> 23;
  bits -= uint32_t(power) << 23;
  float rest;
  std::memcpy(&rest, &bits, 4);
  const float n = float(power) - (tiny ? 23.0f : 0.0f);
  const float f = power == 0 ? t : rest - 1.0f;
  // Minimax of (log(1 + f) - f + f^2 / 2) / f^3.
  float s = -0.07859606625f;
  s = s * f + 0.1288164368f;
  s = s * f - 0.1312875514f;
  s = s * f + 0.1418119268f;
  s = s * f - 0.1662455409f;
  s = s * f + 0.2000228623f;
  s = s * f - 0.250008104f;
  s = s * f + 0.3333331673f;
  const float near = f * f * (s * f - 0.5f) + f;
  return u > 0.0f ? n * 0.693359375f + (n * -2.12194440e-4f + near) : u - infinity<float>;
}

// (1 + t) log(1 + t) + (1 - t) log(1 - t), given u = 1 + t and w = 1 - t. The terms of the series are all positive.
template <class T> inline T divergence(T t, T u, T w) {
  constexpr int last = sizeof(T) == 4 ? 5 : 12;
  const T z = t * t;
  T near = T(0);
  for (int k = last; k >= 0; --k) near = near * z + T(1) / T((k + 1) * (2 * k + 1));
  const T far_u = u == T(0) ? T(0) : u * log_beside_one(u, t), far_w = w == T(0) ? T(0) : w * log_beside_one(w, -t);
  return z < T(0.0625) ? near * z : far_u + far_w;
}

// ---- distances -----------------------------------------------------------------------------------------------------------

// For each: term(a, b) is what a coordinate contributes, `join` adds up, and `finish` makes the sum the distance. The gradient
// with respect to a is slope(a, b, pair), `pair` being what of it is the same for all coordinates. `together` is how many
// coordinates are taken at a time. Powers are of differences divided by the largest of the pair, so that they neither
// overflow nor vanish; `scale` is the inverse of the largest.

template <class T> struct Manhattan {
  static constexpr bool scaled = false;
  static constexpr int together = 4;
  struct Pair {
    T g;
  };
  T term(T a, T b, T) const { return std::abs(a - b); }
  T join(T a, T b) const { return a + b; }
  T finish(T sum, T) const { return sum; }
  Pair pair(T, T g) const { return {g}; }
  T slope(T a, T b, const Pair& pair) const { return (a > b ? pair.g : T(0)) - (a < b ? pair.g : T(0)); }
};

template <class T> struct Chebyshev {
  static constexpr bool scaled = false;
  static constexpr int together = 4;
  struct Pair {
    T d, g;
  };
  T term(T a, T b, T) const { return std::abs(a - b); }
  T join(T a, T b) const { return larger(a, b); }
  T finish(T sum, T) const { return sum; }
  Pair pair(T d, T g) const { return {d, g}; }
  T slope(T a, T b, const Pair& pair) const {
    return (a - b == pair.d ? pair.g : T(0)) - (b - a == pair.d ? pair.g : T(0));
  }
};

// `Exponent` has power(r) for r >= 0, root(sum) and slope(r), the derivative of |r|^p / p.
template <class T, class Exponent> struct Power {
  static constexpr bool scaled = true;
  static constexpr int together = Exponent::together;
  Exponent exponent;
  struct Pair {
    T inverse, g;
  };
  T term(T a, T b, T scale) const { return exponent.power(std::abs(a - b) * scale); }
  T join(T a, T b) const { return a + b; }
  T finish(T sum, T scale) const { return scale == T(0) ? infinity<T> : exponent.root(sum) / scale; }
  Pair pair(T d, T g) const { return {T(1) / fn::maximum(d, smallest<T>), g}; }
  T slope(T a, T b, const Pair& pair) const { return pair.g * exponent.slope((a - b) * pair.inverse); }
};

template <class T> inline T power_of(T r, T p) { return fn::exp(p * log_beside_one(r, r - T(1))); }

template <class T, int p> struct Whole {
  static constexpr int together = 4;
  T power(T r) const {
    T out = r;
    for (int k = 1; k < p; ++k) out *= r;
    return out;
  }
  T root(T sum) const {
    if constexpr (p == 2) return std::sqrt(sum);
    else if constexpr (p == 4) return std::sqrt(std::sqrt(sum));
    else return power_of(sum, T(1) / T(p));
  }
  T slope(T r) const {
    T out = r;
    for (int k = 2; k < p; ++k) out *= std::abs(r);
    return out;
  }
};

template <class T> struct Real {
  static constexpr int together = 1;
  T p;
  T power(T r) const { return power_of(r, p); }
  T root(T sum) const { return power_of(sum, T(1) / p); }
  T slope(T r) const {
    const T size = power_of(std::abs(r), p - T(1));
    return r == T(0) ? T(0) : r < T(0) ? -size : size;
  }
};

template <class T> struct JensenShannon {
  static constexpr bool scaled = false;
  static constexpr int together = 1;
  struct Pair {
    T g;
  };
  T term(T a, T b, T) const {
    const T both = a + b, inverse = inverse_of(both), twice = T(2) * inverse;
    return both * divergence((a - b) * inverse, a * twice, b * twice);
  }
  T join(T a, T b) const { return a + b; }
  T finish(T sum, T) const { return T(0.5) * std::sqrt(sum); }
  Pair pair(T d, T g) const { return {d == T(0) ? T(0) : g / (T(4) * d)}; }
  T slope(T a, T b, const Pair& pair) const {
    const T inverse = inverse_of(a + b), u = a * (T(2) * inverse);
    return u == T(0) ? T(0) : pair.g * log_beside_one(u, (a - b) * inverse);
  }
  static T inverse_of(T sum) { return sum < smallest<T> ? T(0) : T(1) / sum; }
};

template <class T, class F> inline void with_lp(double p, F f) {
  if (p == 1) f(Manhattan<T>{});
  else if (p == 2) f(Power<T, Whole<T, 2>>{});
  else if (p == 3) f(Power<T, Whole<T, 3>>{});
  else if (p == 4) f(Power<T, Whole<T, 4>>{});
  else if (p == std::numeric_limits<double>::infinity()) f(Chebyshev<T>{});
  else f(Power<T, Real<T>>{{T(p)}});
}

template <class T, class F> inline void with_distance(Between between, double p, F f) {
  if (between == Between::lp) with_lp<T>(p, f);
  else f(JensenShannon<T>{});
}

// ---- between all rows ----------------------------------------------------------------------------------------------------

template <class T> struct Block {
  alignas(64) T at[BLOCK_ROWS][BLOCK_WIDTH<T>];
};

// Calls each(first row, rows, first column, columns) for all blocks of an (m, n) result. `depth` numbers make an entry of it.
template <class T, class Each> inline void each_block(int64_t m, int64_t n, int64_t depth, int threads, Each each) {
  const int64_t down = (m + BLOCK_ROWS - 1) / BLOCK_ROWS, across = (n + BLOCK_WIDTH<T> - 1) / BLOCK_WIDTH<T>;
#pragma omp parallel for schedule(static) num_threads(threads) if (m * n * depth > ONE_THREAD_UP_TO)
  for (int64_t k = 0; k < down * across; ++k) {
    const int64_t i = k % down * BLOCK_ROWS, j = k / down * BLOCK_WIDTH<T>;
    each(i, int(std::min<int64_t>(BLOCK_ROWS, m - i)), j, int(std::min<int64_t>(BLOCK_WIDTH<T>, n - j)));
  }
}

// Fills a block from `depth` numbers for each entry; step(count, r, k, part) takes the next `count` from k on into row r.
template <int together, class T, class Join, class Step>
inline void sweep(int64_t depth, int rows, int len, Join join, Step step, Block<T>& total) {
  Block<T> part;
  for (int r = 0; r < rows; ++r) std::fill_n(total.at[r], len, T(0));
  for (int64_t k0 = 0; k0 < depth; k0 += DEPTH) {
    const int64_t end = std::min(depth, k0 + DEPTH);
    for (int r = 0; r < rows; ++r) std::fill_n(part.at[r], len, T(0));
    int64_t k = k0;
    for (; k + together <= end; k += together)
      for (int r = 0; r < rows; ++r) step(std::integral_constant<int, together>{}, r, k, part.at[r]);
    for (; k < end; ++k)
      for (int r = 0; r < rows; ++r) step(std::integral_constant<int, 1>{}, r, k, part.at[r]);
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < len; ++j) total.at[r][j] = join(total.at[r][j], part.at[r][j]);
  }
}

template <class T, class Measure>
inline void sums(const Measure& measure, const Points<const T>& x, const Points<const T>& yt, int64_t i, int rows, int64_t j,
                 int len, const Block<T>& scale, Block<T>& out) {
  auto step = [&](auto count, int r, int64_t k, T* part) {
    constexpr int number = count;
    T own[number];
    const T* other[number];
    for (int q = 0; q < number; ++q) own[q] = x[i + r][k + q], other[q] = yt[k + q] + j;
    for (int c = 0; c < len; ++c) {
      T sum = part[c];
      for (int q = 0; q < number; ++q) sum = measure.join(sum, measure.term(own[q], other[q][c], scale.at[r][c]));
      part[c] = sum;
    }
  };
  sweep<Measure::together>(x.features, rows, len, [&](T a, T b) { return measure.join(a, b); }, step, out);
}

template <class T, class Measure>
void distances_of(const Measure& measure, const Points<const T>& x, const Points<const T>& yt, const Points<T>& out,
                  int threads) {
  each_block<T>(x.number, yt.features, x.features, threads, [&](int64_t i, int rows, int64_t j, int len) {
    Block<T> sum, scale = {};
    if constexpr (Measure::scaled) {
      sums(Chebyshev<T>{}, x, yt, i, rows, j, len, scale, sum);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < len; ++c) scale.at[r][c] = T(1) / fn::maximum(sum.at[r][c], smallest<T>);
    }
    sums(measure, x, yt, i, rows, j, len, scale, sum);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < len; ++c) out[i + r][j + c] = measure.finish(sum.at[r][c], scale.at[r][c]);
  });
}

template <class T, class Measure>
void distance_grads_of(const Measure& measure, const Points<const T>& x, const Points<const T>& y, const Points<const T>& d,
                       const Points<const T>& g, const Points<T>& out, int threads) {
  each_block<T>(x.number, x.features, y.number, threads, [&](int64_t i, int rows, int64_t f, int len) {
    auto step = [&](auto count, int r, int64_t k, T* part) {
      constexpr int number = count;
      typename Measure::Pair pair[number];
      const T* other[number];
      for (int q = 0; q < number; ++q) pair[q] = measure.pair(d[i + r][k + q], g[i + r][k + q]), other[q] = y[k + q] + f;
      const T* own = x[i + r] + f;
      for (int c = 0; c < len; ++c) {
        T sum = part[c];
        for (int q = 0; q < number; ++q) sum += measure.slope(own[c], other[q][c], pair[q]);
        part[c] = sum;
      }
    };
    Block<T> sum;
    sweep<Measure::together>(y.number, rows, len, [](T a, T b) { return a + b; }, step, sum);
    for (int r = 0; r < rows; ++r) std::copy_n(sum.at[r], len, out[i + r] + f);
  });
}

template <class T>
void distances(Between between, double p, const Points<const T>& x, const Points<const T>& yt, const Points<T>& out,
               int threads) {
  with_distance<T>(between, p, [&](auto measure) { distances_of(measure, x, yt, out, threads); });
}

template <class T>
void distance_grads(Between between, double p, const Points<const T>& x, const Points<const T>& y, const Points<const T>& d,
                    const Points<const T>& g, const Points<T>& out, int threads) {
  with_distance<T>(between, p, [&](auto measure) { distance_grads_of(measure, x, y, d, g, out, threads); });
}

// ---- between corresponding rows ------------------------------------------------------------------------------------------

// All terms of a row joined, in as many partial results as a fold takes.
template <class T, class Join, class Term> inline T along(int64_t n, Join join, Term term) {
  alignas(64) T lane[LANES] = {};
  int64_t f = 0;
  for (; f + LANES <= n; f += LANES)
    for (int l = 0; l < LANES; ++l) lane[l] = join(lane[l], term(f + l));
  const int rest = int(n - f);
  for (int l = 0; l < rest; ++l) lane[l] = join(lane[l], term(f + l));
  return fold(lane, join);
}

template <class T, class Measure> inline T row_distance(const Measure& measure, const T* a, const T* b, int64_t n, T eps) {
  auto join = [&](T sum, T term) { return measure.join(sum, term); };
  auto sum = [&](T scale) {
    return along<T>(n, join, [&](int64_t f) { return measure.term((a[f] - b[f]) + eps, T(0), scale); });
  };
  T scale = T(1);
  if constexpr (Measure::scaled) {
    // Products are as exact without a scale, unless they are near the end of the range.
    if constexpr (Measure::together > 1) {
      const T plain = sum(T(1));
      if (plain > smallest<T> / std::numeric_limits<T>::epsilon() && plain < infinity<T>) return measure.finish(plain, scale);
    }
    scale = T(1) / fn::maximum(row_distance(Chebyshev<T>{}, a, b, n, eps), smallest<T>);
  }
  return measure.finish(sum(scale), scale);
}

// The gradient of a row's distance, as of torch.linalg.vector_norm: equal largest coordinates share it.
template <class T, class Measure>
inline typename Measure::Pair row_pair(const Measure& measure, const T* a, const T* b, int64_t n, T eps, T d, T g) {
  if constexpr (std::is_same_v<Measure, Chebyshev<T>>) {
    if (g == T(0)) return {d, g};
    auto largest = [&](int64_t f) { return std::abs((a[f] - b[f]) + eps) == d ? T(1) : T(0); };
    g /= along<T>(n, [](T sum, T term) { return sum + term; }, largest);
  }
  return measure.pair(d, g);
}

template <class T> void triplet_losses(const TripletRows<T>& rows, const Points<T>& distances, T* losses) {
  const int64_t number = rows.anchor.number, n = rows.anchor.features;
  const T eps = T(rows.eps), margin = T(rows.margin);
  with_lp<T>(rows.p, [&](auto measure) {
#pragma omp parallel for schedule(static) num_threads(rows.threads) if (number * n > ONE_THREAD_UP_TO)
    for (int64_t i = 0; i < number; ++i) {
      const T *anchor = rows.anchor[i], *positive = rows.positive[i], *negative = rows.negative[i];
      const T near = distances[0][i] = row_distance(measure, anchor, positive, n, eps);
      T far = distances[1][i] = row_distance(measure, anchor, negative, n, eps);
      if (rows.swap) far = fn::minimum(far, distances[2][i] = row_distance(measure, positive, negative, n, eps));
      losses[i] = fn::relu((margin + near) - far);
    }
  });
}

// Everything by value: what a written gradient might overlap would be read again for each coordinate.
template <bool swap, class T, class Measure, class Pair>
inline void write_grads(Measure measure, const T* a, const T* b, const T* c, int64_t n, T eps, Pair ab, Pair ac, Pair bc,
                        T* __restrict by_a, T* __restrict by_b, T* __restrict by_c) {
  for (int64_t f = 0; f < n; ++f) {
    const T to_b = measure.slope((a[f] - b[f]) + eps, T(0), ab), to_c = measure.slope((a[f] - c[f]) + eps, T(0), ac);
    const T between = swap ? measure.slope((b[f] - c[f]) + eps, T(0), bc) : T(0);
    by_a[f] = to_b + to_c;
    by_b[f] = between - to_b;
    by_c[f] = -to_c - between;
  }
}

template <bool swap, class T, class Measure>
void triplet_grads_of(const Measure& measure, const TripletRows<T>& rows, const Points<const T>& distances, const T* g,
                      const Points<T>* (&grads)[3]) {
  const int64_t number = rows.anchor.number, n = rows.anchor.features;
  const T eps = T(rows.eps), margin = T(rows.margin);
#pragma omp parallel num_threads(rows.threads) if (number * n > ONE_THREAD_UP_TO)
  {
    std::vector<T> unwanted(3 * n);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < number; ++i) {
      T* out[3];
      for (int k = 0; k < 3; ++k) out[k] = grads[k]->data ? (*grads[k])[i] : unwanted.data() + k * n;
      const T near = distances[0][i], far = distances[1][i], other = swap ? distances[2][i] : far;
      if ((margin + near) - fn::minimum(far, other) < T(0)) {
        for (int k = 0; k < 3; ++k) std::fill_n(out[k], n, T(0));
        continue;
      }
      // Of two equal distances each is the smaller one by half.
      const T share = !swap || far < other ? T(1) : far == other ? T(0.5) : T(0);
      const T *a = rows.anchor[i], *b = rows.positive[i], *c = rows.negative[i];
      const auto ab = row_pair(measure, a, b, n, eps, near, g[i]), ac = row_pair(measure, a, c, n, eps, far, -g[i] * share);
      const auto bc = swap ? row_pair(measure, b, c, n, eps, other, -g[i] * (T(1) - share)) : ac;
      write_grads<swap>(measure, a, b, c, n, eps, ab, ac, bc, out[0], out[1], out[2]);
    }
  }
}

template <class T>
void triplet_grads(const TripletRows<T>& rows, const Points<const T>& distances, const T* g, const Points<T>& anchor,
                   const Points<T>& positive, const Points<T>& negative) {
  const Points<T>* grads[3] = {&anchor, &positive, &negative};
  with_lp<T>(rows.p, [&](auto measure) {
    if (rows.swap) triplet_grads_of<true>(measure, rows, distances, g, grads);
    else triplet_grads_of<false>(measure, rows, distances, g, grads);
  });
}

template <class T> constexpr Vectors<T> vectors = {distances<T>, distance_grads<T>, triplet_losses<T>, triplet_grads<T>};

}  // namespace
