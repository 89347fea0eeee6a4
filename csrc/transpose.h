// A square matrix plus its transpose, in place: what moves memory needs no instruction set of its own.
#pragma once
#include <algorithm>
#include <cstdint>

namespace {

template <class T> void add_transposed(T* a, int64_t n, int64_t stride, int threads) {
  constexpr int64_t block = 32;
  const int64_t blocks = (n + block - 1) / block;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (n > 128)
  for (int64_t p = 0; p < blocks; ++p) {
    const int64_t i0 = p * block, rows = std::min(block, n - i0);
    for (int64_t q = p; q < blocks; ++q) {
      const int64_t j0 = q * block, columns = std::min(block, n - j0);
      T turned[block][block];
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r) turned[r][c] = a[(j0 + c) * stride + i0 + r];
      for (int64_t r = 0; r < rows; ++r) {
        T* row = a + (i0 + r) * stride + j0;
        for (int64_t c = 0; c < columns; ++c) turned[r][c] += row[c];
        for (int64_t c = 0; c < columns; ++c) row[c] = turned[r][c];
      }
      if (p == q) continue;
      for (int64_t c = 0; c < columns; ++c) {
        T* row = a + (j0 + c) * stride + i0;
        for (int64_t r = 0; r < rows; ++r) row[r] = turned[r][c];
      }
    }
  }
}

}  // namespace
