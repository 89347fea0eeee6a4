// Kernels that are wrong, and one that is not, to see that the emulation tells.
#include <cstdio>

#include "cuda/block.cuh"

__global__ void read_before_written(int* out) {
  __shared__ int of_thread[gpu::THREADS];
  of_thread[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = of_thread[(threadIdx.x + 1) % gpu::THREADS];
}

__global__ void half_a_barrier() {
  if (threadIdx.x < 100) __syncthreads();
}

__global__ void sum_of_threads(int* out) {
  const int sum = summed(int(threadIdx.x));
  if (threadIdx.x == 0) *out = sum;
}

int main() {
  int of_thread[gpu::THREADS] = {}, *out = of_thread;
  gpu::launch({0, 0}, dim3(1), read_before_written, out);
  for (int k : of_thread) std::printf("%d ", k);
  std::printf("\n");
  try {
    gpu::launch({0, 0}, dim3(1), half_a_barrier);
  } catch (const std::exception& error) {
    std::printf("barrier: %s\n", error.what());
  }
  gpu::launch({0, 0}, dim3(1), sum_of_threads, out);
  std::printf("sum: %d\n", out[0]);
}
