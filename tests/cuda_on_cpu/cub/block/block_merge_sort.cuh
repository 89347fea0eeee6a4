// As much of CUB as the kernels use, on a CPU: one thread sorts for all of them.
#pragma once
#include <algorithm>

#include "../../cuda_runtime.h"

namespace cub {

template <class Key, int THREADS, int EACH> class BlockMergeSort {
 public:
  struct TempStorage {
    Key keys[THREADS * EACH];
  };

  explicit BlockMergeSort(TempStorage& room) : keys(room.keys) {}

  template <class Less> void Sort(Key (&mine)[EACH], Less less) {
    std::copy(mine, mine + EACH, keys + threadIdx.x * EACH);
    __syncthreads();
    if (threadIdx.x == 0) std::stable_sort(keys, keys + THREADS * EACH, less);
    __syncthreads();
    std::copy(keys + threadIdx.x * EACH, keys + (threadIdx.x + 1) * EACH, mine);
  }

 private:
  Key* keys;
};

}  // namespace cub
