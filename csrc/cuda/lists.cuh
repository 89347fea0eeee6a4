// What the kernels of metric_kernels/ordered.py read: the columns of a row, and its list, part by part.
#pragma once
#include "block.cuh"

namespace {

// Columns that a thread holds, and a block.
constexpr int HELD = 8;
constexpr int64_t TILE = HELD * gpu::THREADS;

// Some columns of a row as a thread holds them, HELD of them from j0 on.
template <class T> struct Columns {
  T u[HELD];  // sign * v - margin; inf, which is below nothing, for all but negatives
  bool negative[HELD];
  int held;         // up to here there are columns, for some threads
  int spoiled = 0;  // whether a value is NaN

  __device__ Columns(const Values<T>& tile, int64_t i, int64_t j0, T sign, T margin) {
    const T* v = tile.v + i * tile.stride;
    const int64_t label = tile.labels[i];
    held = int(min(int64_t(HELD), (tile.n - j0 + gpu::THREADS - 1) / gpu::THREADS));
    for (int h = 0; h < HELD; ++h) {
      const int64_t j = number(j0, h);
      negative[h] = j < tile.n && tile.ref_labels[j] != label;
      const T value = j < tile.n ? v[j] : T(0);
      u[h] = negative[h] ? sign * value - margin : std::numeric_limits<T>::infinity();
      spoiled |= value != value;
    }
  }
  static __device__ int64_t number(int64_t j0, int h) { return j0 + h * gpu::THREADS + threadIdx.x; }
};

// visit(j, u) for each negative of a row that is the thread's. Returns whether a value of the row is NaN.
template <class T, class Visit>
__device__ int each_negative(const Values<T>& tile, int64_t i, T sign, T margin, Visit visit) {
  int spoiled = 0;
  for (int64_t j0 = 0; j0 < tile.n; j0 += TILE) {
    const Columns<T> columns(tile, i, j0, sign, margin);
    spoiled |= columns.spoiled;
    for (int h = 0; h < HELD; ++h)
      if (columns.negative[h]) visit(columns.number(j0, h), columns.u[h]);
  }
  return spoiled;
}

// Where a row finds its list: among lists that are given and sorted,
template <class T> struct GivenLists {
  static constexpr bool sorted = true, own = false;
  Lists<T> lists;

  // Only the GPU can know, without waiting for it, whether there is such a list.
  __device__ bool there(int64_t i) const { return lists.which[i] >= 0 && lists.which[i] < lists.number; }
  __device__ int64_t length(int64_t) const { return lists.length; }
  // Of a value among numbers that go with all lists.
  __device__ int64_t* place(int64_t* numbers, int64_t i, int64_t k) const {
    return numbers + lists.which[i] * lists.length + k;
  }
  __device__ T value(const Values<T>&, int64_t i, int64_t k) const { return lists.values[lists.which[i] * lists.stride + k]; }
};

// or in its own positives, not sorted.
template <class T> struct OwnPositives {
  static constexpr bool sorted = false, own = true;
  gpu::Members members;
  T sign;

  __device__ bool there(int64_t) const { return true; }
  __device__ int64_t length(int64_t i) const { return members.number[i]; }
  __device__ int64_t column(int64_t i, int64_t k) const { return members.order[members.first[i] + k]; }
  __device__ T value(const Values<T>& tile, int64_t i, int64_t k) const {
    const int64_t j = column(i, k);
    const bool self = tile.diagonal >= 0 && j == tile.diagonal + i;
    return self ? -std::numeric_limits<T>::infinity() : sign * tile.v[i * tile.stride + j];
  }
};

// -inf stands for no value.
template <class T> __device__ bool missing(T value) { return value == -std::numeric_limits<T>::infinity(); }

// A part of the list of a row in shared memory, sorted. Values of -inf come first and are above nothing.
template <class Source, class T, int LENGTH> struct SortedPart {
  T list[LENGTH];
  int16_t place[Source::sorted ? 1 : LENGTH];  // where a value was before the part was sorted, -1 for none
  int length, size;                            // size is the power of two from length on

  __device__ void take(const Source& source, const Values<T>& tile, int64_t i, int64_t from) {
    const int number = int(min(int64_t(LENGTH), source.length(i) - from));
    int power = 1;
    while (power < number) power *= 2;
    const int filled = Source::sorted ? number : power;
    __syncthreads();
    for (int k = threadIdx.x; k < filled; k += gpu::THREADS) {
      list[k] = k < number ? source.value(tile, i, from + k) : -std::numeric_limits<T>::infinity();
      if constexpr (!Source::sorted) place[k] = int16_t(k < number ? k : -1);
    }
    if (threadIdx.x == 0) length = filled, size = power;
    __syncthreads();
    if constexpr (!Source::sorted) sort();
  }

  // Bitonic.
  __device__ void sort() {
    for (int run = 2; run <= size; run *= 2)
      for (int step = run / 2; step; step /= 2) {
        for (int pair = threadIdx.x; pair < size / 2; pair += gpu::THREADS) {
          const int a = pair / step * 2 * step + pair % step, b = a + step;
          if ((list[b] < list[a]) == ((a & run) == 0) && list[a] != list[b]) {
            const T value = list[a];
            const int16_t from = place[a];
            list[a] = list[b], place[a] = place[b];
            list[b] = value, place[b] = from;
          }
        }
        __syncthreads();
      }
  }

  // The first value that is far enough, as all later ones are, or the length.
  template <class Enough> __device__ int first(Enough enough) const {
    int low = 0, high = length;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (enough(list[middle])) high = middle;
      else low = middle + 1;
    }
    return low;
  }
};

}  // namespace
