// What the threads of a block do together. Everything is combined in the same order on every run.
#pragma once
#include <cstring>

#include "launch.cuh"

namespace {

constexpr int WARP = 32, WARPS = gpu::THREADS / WARP;
constexpr unsigned ALL_LANES = 0xffffffffu;

// The value of the lane that is so many above, or below with `up`.
template <bool up = false, class V> __device__ V shuffle(const V& value, int lanes) {
  static_assert(sizeof(V) % sizeof(int) == 0, "shuffled word by word");
  int words[sizeof(V) / sizeof(int)];
  memcpy(words, &value, sizeof(V));
  for (int& word : words) word = up ? __shfl_up_sync(ALL_LANES, word, lanes) : __shfl_down_sync(ALL_LANES, word, lanes);
  V other;
  memcpy(&other, words, sizeof(V));
  return other;
}

// All values of a warp combined, for its first lane.
template <class V, class Combine> __device__ V reduced_in_warp(V value, Combine combine) {
  for (int lanes = WARP / 2; lanes; lanes /= 2) value = combine(value, shuffle(value, lanes));
  return value;
}

// All values of a block combined, for its first thread.
template <class V, class Combine> __device__ V reduced(V value, Combine combine) {
  __shared__ V of_warp[WARPS];
  value = reduced_in_warp(value, combine);
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < WARPS; ++warp) value = combine(value, of_warp[warp]);
  __syncthreads();
  return value;
}

template <class V> __device__ V summed(V value) {
  return reduced(value, [](const V& a, const V& b) { return a + b; });
}

// a[k] becomes a[0], ..., a[k] combined in that order; a is shared. Values that come late never reach what comes before.
template <class V, class Combine> __device__ void accumulate(V* a, int length, V nothing, Combine combine) {
  __shared__ V of_warp[WARPS];
  const int each = (length + gpu::THREADS - 1) / gpu::THREADS, lane = threadIdx.x % WARP;
  const int first = min(int(threadIdx.x) * each, length), last = min(first + each, length);
  V all = nothing;
  for (int k = first; k < last; ++k) a[k] = all = combine(all, a[k]);
  for (int lanes = 1; lanes < WARP; lanes *= 2) {
    const V before = shuffle<true>(all, lanes);
    if (lane >= lanes) all = combine(before, all);
  }
  if (lane == WARP - 1) of_warp[threadIdx.x / WARP] = all;
  const V of_lanes = shuffle<true>(all, 1);
  __syncthreads();
  V before = nothing;
  for (int warp = 0; warp < int(threadIdx.x) / WARP; ++warp) before = combine(before, of_warp[warp]);
  if (lane) before = combine(before, of_lanes);
  for (int k = first; k < last; ++k) a[k] = combine(before, a[k]);
  __syncthreads();
}

template <class V> __device__ void accumulate(V* a, int length) {
  accumulate(a, length, V(0), [](const V& a, const V& b) { return a + b; });
}

// A sum of many numbers to twice their precision, because additions in double are slow on most GPUs.
template <class T> struct Sum {
  T high = T(0), low = T(0);

  __device__ void add(T x) {
    const T sum = high + x, back = sum - high;
    low += (high - (sum - back)) + (x - back);
    high = sum;
  }
  __device__ void scale(T factor) { high *= factor, low *= factor; }
  // The correction of a sum that is not finite is not a number.
  __device__ double value() const { return high - high == T(0) ? double(high) + double(low) : double(high); }
};

// Adds to a number that other blocks add to; integers, so that their order does not show.
__device__ inline void add_atomically(int64_t* to, int64_t number) {
  if (number) atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(number));
}

}  // namespace
