// How kernels are launched: blocks of THREADS threads, on the stream and device that the caller names.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace gpu {

constexpr int THREADS = 256;

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// One block for each row, unless there are too many for a grid.
inline dim3 block_each(int64_t rows) {
  if (rows > std::numeric_limits<int32_t>::max())
    throw std::runtime_error("rows: expected fewer than 2**31, got " + std::to_string(rows));
  return dim3(unsigned(rows));
}

// The device is set for this module's own copy of the runtime, which does not see what another copy has set.
template <class... Parameters, class... Arguments>
void launch(const Stream& stream, dim3 blocks, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (!blocks.x || !blocks.y) return;
  check(cudaSetDevice(stream.device));
  cudaLaunchConfig_t config{};
  config.gridDim = blocks, config.blockDim = dim3(THREADS);
  config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace gpu
