// For each value of a row's list the nearest negative beyond it, or else the farthest negative.
//
// Bisection finds the last value of a sorted list that a negative is beyond, and of the negatives with the same one the nearest is
// kept. Those of a later value are farther: the nearest negative beyond a value is the first that was kept from there on. What
// threads share are minima of integers, which depend on no order.
#pragma once
#include <type_traits>

#include "../costs.h"
#include "lists.cuh"

namespace {

// Values of a list in shared memory; a thread has two at most.
constexpr int SEARCHED = 2 * gpu::THREADS;

// An integer for each number, in the order of numbers; -0 and 0 have the same.
template <class T> using Key = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;
template <class T> constexpr Key<T> SIGN = Key<T>(1) << (8 * sizeof(T) - 1);
// Above the key of any number, as 0, the key of a NaN, is below.
template <class T> constexpr Key<T> NONE = ~Key<T>(0);

template <class T> __device__ Key<T> key_of(T u) {
  u += T(0);  // which makes 0 of -0
  Key<T> bits;
  memcpy(&bits, &u, sizeof(T));
  return bits & SIGN<T> ? ~bits : bits | SIGN<T>;
}
template <class T> __device__ T value_of(Key<T> key) {
  const Key<T> bits = key & SIGN<T> ? key & ~SIGN<T> : ~key;
  T u;
  memcpy(&u, &bits, sizeof(T));
  return u;
}

// The smallest key of each place, the last value's first, and then that of the farthest negative.
template <class Source, class T> struct Nearest : SortedPart<Source, T, SEARCHED> {
  using Sorted = SortedPart<Source, T, SEARCHED>;
  using Sorted::length;
  using Sorted::list;
  using Sorted::size;
  Key<T> keys[SEARCHED + 1];

  // Among the keys: that of the last value that a negative is beyond, or the end.
  __device__ int place_of(T u) const {
    return size - Sorted::first([&](T t) { return !(t < u); });
  }

  // Returns whether a value of the row is NaN.
  __device__ int take(const Source& source, const Values<T>& tile, int64_t i, int64_t from, T sign) {
    Sorted::take(source, tile, i, from);
    for (int k = threadIdx.x; k < SEARCHED; k += gpu::THREADS) keys[k] = NONE<T>;
    __syncthreads();
    // Threads that would meet at the few places of a short list have copies of them.
    const int copies = SEARCHED / size, copy = threadIdx.x % copies;
    Key<T> top = 0;
    const int spoiled = each_negative(tile, i, sign, T(0), [&](int64_t, T u) {
      const Key<T> key = key_of(u);
      const int place = place_of(u);
      top = max(top, key);
      if (place < size) atomicMin(keys + place * copies + copy, key);
    });
    top = reduced(top, [](Key<T> a, Key<T> b) { return max(a, b); });
    const auto smaller = [](Key<T> a, Key<T> b) { return min(a, b); };
    // Neighbours together, until there is one of each place.
    for (int half = SEARCHED / 2; half >= size; half /= 2) {
      const bool some = int(threadIdx.x) < half;
      const Key<T> key = some ? smaller(keys[2 * threadIdx.x], keys[2 * threadIdx.x + 1]) : Key<T>(0);
      __syncthreads();
      if (some) keys[threadIdx.x] = key;
      __syncthreads();
    }
    accumulate(keys, size, NONE<T>, smaller);
    if (threadIdx.x == 0) keys[size] = top;
    __syncthreads();
    return spoiled;
  }

  // Of the negative for value k; NaN if there are no negatives.
  __device__ T negative(int k) const {
    const Key<T> key = keys[size - 1 - k];
    return value_of<T>(key == NONE<T> ? keys[size] : key);
  }
};

// With the columns of these negatives, the first one of equals.
template <class Source, class T> struct NearestColumns : Nearest<Source, T> {
  using Base = Nearest<Source, T>;
  unsigned columns[SEARCHED + 1];  // where the keys are; fewer than 2^31

  __device__ void take(const Source& source, const Values<T>& tile, int64_t i, int64_t from, T sign) {
    Base::take(source, tile, i, from, sign);
    for (int k = threadIdx.x; k <= Base::size; k += gpu::THREADS) columns[k] = ~0u;
    __syncthreads();
    each_negative(tile, i, sign, T(0), [&](int64_t j, T u) {
      const int place = place_of(u);
      if (Base::keys[place] == key_of(u)) atomicMin(columns + place, unsigned(j));
    });
    __syncthreads();
  }

  // Where the farthest ones are, there may be a nearer one.
  __device__ int place_of(T u) const {
    return key_of(u) == Base::keys[Base::size] ? Base::size : Base::place_of(u);
  }

  // -1 if there is none.
  __device__ int64_t column(T negative) const { return int(columns[place_of(negative)]); }
};

template <class T>
__global__ void nearest_rows(Values<T> tile, T sign, GivenLists<T> source, int64_t* columns) {
  __shared__ NearestColumns<GivenLists<T>, T> nearest;
  const int64_t i = blockIdx.x, length = source.length(i);
  for (int64_t from = 0; from < length; from += SEARCHED) {
    nearest.take(source, tile, i, from, sign);
    for (int k = threadIdx.x; k < nearest.length; k += gpu::THREADS)
      columns[i * length + from + k] = nearest.column(nearest.negative(k));
  }
}

// A positive that is missing leaves a gap of -inf, and a missing negative one of NaN.
template <Shape shape, class T> __device__ bool counted(T gap, const Cost<T>& of) {
  return gap > -std::numeric_limits<T>::infinity() && inside(cost<shape>(gap), of);
}

template <Shape shape, class T>
__global__ void semi_hard_rows(Values<T> tile, T sign, OwnPositives<T> source, T margin, Cost<T> of, double* totals,
                               int64_t* counts) {
  __shared__ Nearest<OwnPositives<T>, T> nearest;
  const int64_t i = blockIdx.x;
  double total = 0;
  int64_t count = 0;
  int spoiled = 0;
  // Once at least, for a NaN in a row without positives.
  for (int64_t from = 0; from == 0 || from < source.length(i); from += SEARCHED) {
    spoiled |= nearest.take(source, tile, i, from, sign);
    for (int k = threadIdx.x; k < nearest.length; k += gpu::THREADS) {
      const T gap = nearest.list[k] - nearest.negative(k) + margin;
      if (!counted<shape>(gap, of)) continue;
      total += double(cost<shape>(gap));
      ++count;
    }
  }
  total = summed(total);
  count = summed(count);
  spoiled = summed(spoiled);
  if (threadIdx.x) return;
  totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
  counts[i] += count;
}

// The slopes of positives with the same negative, which follow one another, added up so far.
template <class T> struct Run {
  double slopes;
  T negative;
};

template <Shape shape, class T>
__global__ void semi_hard_grad_rows(Values<T> tile, T sign, OwnPositives<T> source, T margin, Cost<T> of, const T* scale, T* g,
                                    int64_t g_stride) {
  __shared__ NearestColumns<OwnPositives<T>, T> nearest;
  __shared__ Run<T> runs[SEARCHED];
  const int64_t i = blockIdx.x;
  const T factor = sign * scale[i];
  T* out = g + i * g_stride;
  for (int64_t from = 0; from < source.length(i); from += SEARCHED) {
    nearest.take(source, tile, i, from, sign);
    for (int k = threadIdx.x; k < nearest.length; k += gpu::THREADS) {
      const T negative = nearest.negative(k), gap = nearest.list[k] - negative + margin;
      const bool some = counted<shape>(gap, of);
      const T one = some ? slope<shape>(gap) : T(0);
      runs[k] = {double(one), negative};
      if (some) out[source.column(i, from + nearest.place[k])] += factor * one;
    }
    __syncthreads();
    accumulate(runs, nearest.length, Run<T>{0, T(0)}, [](const Run<T>& before, const Run<T>& own) {
      return own.negative == before.negative ? Run<T>{before.slopes + own.slopes, own.negative} : own;
    });
    for (int k = threadIdx.x; k < nearest.length; k += gpu::THREADS) {
      const Run<T> run = runs[k];
      const bool last = k + 1 == nearest.length || runs[k + 1].negative != run.negative;
      if (last && run.slopes != 0) out[nearest.column(run.negative)] -= factor * T(run.slopes);
    }
  }
}

}  // namespace
