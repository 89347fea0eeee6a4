// The vocabulary of a formula in its C++ spelling; see metric_kernels/fn.py. Straight-line code, so that loops vectorise.
// MK_FN precedes a function that kernels call on the CPU and, where nvcc compiles it, on the GPU.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#define MK_FN __host__ __device__ inline
#else
#define MK_FN inline
#endif

namespace fn {

template <class T> MK_FN T where(bool condition, T a, T b) { return condition ? a : b; }
template <class T> MK_FN T stop(T x) { return x; }
template <class T> MK_FN T abs(T x) { return x < T(0) ? -x : x; }
template <class T> MK_FN T relu(T x) { return x < T(0) ? T(0) : x; }
template <class T> MK_FN T step(T x) { return x > T(0) ? T(1) : T(0); }
template <class T> MK_FN T within(T x, T low, T high) { return (x > low) & (x < high) ? T(1) : T(0); }
template <class T> MK_FN T maximum(T a, T b) { return (a > b) | (a != a) ? a : b; }
template <class T> MK_FN T minimum(T a, T b) { return (a < b) | (a != a) ? a : b; }
template <class T> MK_FN T sqrt(T x) { return std::sqrt(x); }
template <class T> MK_FN T log(T x) { return std::log(x); }

// a - b of rounded numbers. In the registers of a GPU a product would otherwise be subtracted from before it is rounded.
MK_FN double difference(double a, double b) { return a - b; }
MK_FN float difference(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}

MK_FN double exp(double x) { return std::exp(x); }

// e^x = 2^n e^r with |r| <= ln 2 / 2: within 2 ulp, 0 below -87.3, inf above 88.37, NaN for NaN.
MK_FN float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);  // which has an instruction of its own there
#else
  float c = x < -87.3f ? -87.3f : x;
  c = c > 88.37f ? 88.37f : c;
  // Adding 1.5 * 2^23 rounds to an integer that then stands in the low bits.
  const float shifted = c * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  const float y = p * scale;
  const float low = x < -87.3f ? 0.0f : y;
  return x > 88.37f ? std::numeric_limits<float>::infinity() : low;
#endif
}

// log(1 + u) for 0 <= u <= 1.
MK_FN double log1p_unit(double u) { return std::log1p(u); }

// 2 artanh(u / (2 + u)) as a series in s <= 1/3.
MK_FN float log1p_unit(float u) {
  const float s = u / (2.0f + u), z = s * s;
  float p = 1.0f / 15.0f;
  p = p * z + 1.0f / 13.0f;
  p = p * z + 1.0f / 11.0f;
  p = p * z + 1.0f / 9.0f;
  p = p * z + 1.0f / 7.0f;
  p = p * z + 0.2f;
  p = p * z + 1.0f / 3.0f;
  return 2.0f * (s + s * z * p);
}

template <class T> MK_FN T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }
template <class T> MK_FN T softplus(T x) { return relu(x) + log1p_unit(exp(-abs(x))); }
template <class T> MK_FN T logaddexp(T a, T b) { return maximum(a, b) + log1p_unit(exp(-abs(a - b))); }

}  // namespace fn
