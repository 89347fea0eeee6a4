// Every negative of a row ranked in a sorted list of positive values.
//
// What lies between lists and columns is a sum over the parts of a list, so that lists of any length are taken part by part.
#pragma once
#include "lists.cuh"

namespace {

// What shared memory holds of a list that is given, short or not, and of one that is gathered.
constexpr int SHORT = 32, LONG = 2048, GATHERED = 1024;
// Lists of up to so many values are compared value by value, longer ones searched. Not measured on a GPU yet.
constexpr int COMPARED = 8;

template <class Source, class T, int LENGTH> struct Part : SortedPart<Source, T, LENGTH> {
  using Sorted = SortedPart<Source, T, LENGTH>;
  using Sorted::length;
  using Sorted::list;
  double sums[LENGTH + 1];  // of the c largest values, at [c]
  int with[LENGTH];         // columns with c values above them, at [length - c]

  __device__ void take(const Source& source, const Values<T>& tile, int64_t i, int64_t from) {
    Sorted::take(source, tile, i, from);
    if (threadIdx.x == 0) sums[0] = 0;
    for (int k = threadIdx.x; k < length; k += gpu::THREADS) {
      sums[length - k] = double(list[k]);
      with[k] = 0;
    }
    __syncthreads();
    accumulate(sums + 1, length);
  }

  __device__ int above(T u) const {
    if (!length || !(u < list[length - 1])) return 0;
    if (u < list[0]) return length;
    if (length > COMPARED) return length - Sorted::first([&](T t) { return t > u; });
    int number = 0;
    for (int k = 0; k < length; ++k) number += list[k] > u;
    return number;
  }

  // visit(k, number of columns below the value) for each value that has some; k is its place before the part was sorted.
  template <class Visit> __device__ void each_below(Visit visit) {
    __syncthreads();
    accumulate(with, length);
    for (int k = threadIdx.x; k < length; k += gpu::THREADS) {
      int from = k;
      if constexpr (!Source::sorted) from = Sorted::place[k];
      if (with[k] && from >= 0) visit(from, with[k]);
    }
  }
};

// visit(j, u, c) for each column with c > 0 values of the part above u. Returns whether a value of the row is NaN.
template <class Part, class T, class Visit>
__device__ int each_active(Part& part, const Values<T>& tile, int64_t i, T sign, T margin, bool below, Visit visit) {
  return each_negative(tile, i, sign, margin, [&](int64_t j, T u) {
    const int number = part.above(u);
    if (!number) return;
    visit(j, u, number);
    if (below) atomicAdd(part.with + part.length - number, 1);
  });
}

template <int LENGTH, class Source, class T>
__global__ void rank_rows(Values<T> tile, T sign, Source source, T margin, double* totals, int64_t* counts, int64_t* below) {
  __shared__ Part<Source, T, LENGTH> part;
  const int64_t i = blockIdx.x;
  double total = 0;
  int64_t count = 0;
  const bool there = source.there(i);
  int spoiled = !there;
  // Once at least, for a NaN in a row without a list.
  for (int64_t from = 0; there && (from == 0 || from < source.length(i)); from += LENGTH) {
    part.take(source, tile, i, from);
    spoiled |= each_active(part, tile, i, sign, margin, below, [&](int64_t, T u, int c) {
      total += part.sums[c] - double(c) * double(u);
      count += c;
    });
    if constexpr (!Source::own)
      if (below) part.each_below([&](int k, int number) { add_atomically(source.place(below, i, from + k), number); });
  }
  total = summed(total);
  count = summed(count);
  spoiled = summed(spoiled);
  if (threadIdx.x) return;
  totals[i] += spoiled ? std::numeric_limits<double>::quiet_NaN() : total;
  counts[i] += count;
}

// The gradients of positives go to g as well, where they are the row's own.
template <int LENGTH, class Source, class T>
__global__ void rank_grad_rows(Values<T> tile, T sign, Source source, T margin, const T* scale, T* g, int64_t g_stride,
                               int64_t* below) {
  __shared__ Part<Source, T, LENGTH> part;
  const int64_t i = blockIdx.x;
  if (!source.there(i)) return;
  const T factor = sign * scale[i];
  T* out = g + i * g_stride;
  for (int64_t from = 0; from < source.length(i); from += LENGTH) {
    part.take(source, tile, i, from);
    each_active(part, tile, i, sign, margin, below || Source::own, [&](int64_t j, T, int c) { out[j] -= factor * T(c); });
    if constexpr (Source::own)
      part.each_below([&](int k, int number) { out[source.column(i, from + k)] += factor * T(number); });
    else if (below)
      part.each_below([&](int k, int number) { add_atomically(source.place(below, i, from + k), number); });
  }
}

}  // namespace
