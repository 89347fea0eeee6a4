// As much of CUDA as the kernels use, on a CPU: to test what they compute, on a machine without a GPU.
//
// The threads of a block are fibers that run one after another, each until it waits for others. Those that never come are an
// error, as is a barrier that part of a block passes by. CUDA_ON_CPU_ORDER=backwards runs blocks and threads in the opposite
// order: a kernel whose result depends on it has a race.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define CUDA_ON_CPU
#define CUDART_VERSION 0
#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after another

using std::isfinite;
using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace emulated {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;

struct Barrier {
  int waiting = 0;
  int64_t generation = 0;
};

struct Thread {
  ucontext_t start;
  jmp_buf place;
  bool started = false;
  std::unique_ptr<char[]> stack{new char[STACK]};
  const Barrier* at = nullptr;  // where it waits
  int64_t since = 0;
  bool finished = false;
  uint64_t word = 0;  // what a shuffle offers to the others

  bool waits() const { return at && at->generation == since; }
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Barrier> warps;
  Barrier all;
  jmp_buf scheduler;
  std::function<void()> kernel;
};

inline Block block;

inline Thread& current() { return block.threads[threadIdx.x]; }

// Contexts are for the start only: changing them asks the kernel of the system each time.
inline void yield() {
  if (!_setjmp(current().place)) _longjmp(block.scheduler, 1);
}

inline void resume(Thread& thread) {
  if (_setjmp(block.scheduler)) return;
  if (thread.started) _longjmp(thread.place, 1);
  thread.started = true;
  setcontext(&thread.start);
}

inline void wait(Barrier& barrier, int expected) {
  if (++barrier.waiting == expected) {
    barrier.waiting = 0, ++barrier.generation;
    return;
  }
  Thread& me = current();
  me.at = &barrier, me.since = barrier.generation;
  yield();
  me.at = nullptr;
}

inline void wait_for_warp() { wait(block.warps[threadIdx.x / WARP], WARP); }

inline void body() {
  block.kernel();
  current().finished = true;
  yield();
}

inline bool backwards() {
  const char* order = std::getenv("CUDA_ON_CPU_ORDER");
  return order && std::string(order) == "backwards";
}

// Runs the threads of a block. Returns whether all of them came to the end.
inline bool run_block(int size, bool reversed) {
  if (int(block.threads.size()) != size) block.threads = std::vector<Thread>(size);
  block.warps.assign(size / WARP, {}), block.all = {};
  for (Thread& thread : block.threads) {
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.get(), thread.start.uc_stack.ss_size = STACK;
    thread.start.uc_link = nullptr, thread.at = nullptr, thread.started = thread.finished = false;
    makecontext(&thread.start, body, 0);
  }
  for (int finished = 0, moved = 1; finished < size;) {
    if (!moved) return false;
    moved = 0;
    for (int k = 0; k < size; ++k) {
      const int number = reversed ? size - 1 - k : k;
      Thread& thread = block.threads[number];
      if (thread.finished || thread.waits()) continue;
      threadIdx.x = unsigned(number), ++moved;
      resume(thread);
      finished += thread.finished;
    }
  }
  return true;
}

template <class V> V exchange(V value, int from) {
  Thread& me = current();
  std::memcpy(&me.word, &value, sizeof(V));
  const int lane = threadIdx.x % WARP, first = threadIdx.x - lane;
  wait_for_warp();
  if (from >= 0 && from < WARP) std::memcpy(&value, &block.threads[first + from].word, sizeof(V));
  wait_for_warp();
  return value;
}

inline int lane() { return threadIdx.x % WARP; }

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::block.all, int(emulated::block.threads.size())); }
template <class V> V __shfl_down_sync(unsigned, V value, int by) { return emulated::exchange(value, emulated::lane() + by); }
template <class V> V __shfl_up_sync(unsigned, V value, int by) { return emulated::exchange(value, emulated::lane() - by); }
template <class V> V atomicAdd(V* to, V value) {
  const V before = *to;
  *to += value;
  return before;
}
template <class V> V atomicMin(V* to, V value) {
  const V before = *to;
  *to = min(before, value);
  return before;
}

// ---- the runtime -----------------------------------------------------------------------------------------------------

using cudaError_t = int;
using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
constexpr cudaError_t cudaSuccess = 0, cudaErrorLaunchFailure = 719;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "some threads of a block wait for others that never come" : "no error";
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* number) { return *number = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 9, cudaSuccess; }

template <class... P, class... A> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... given) {
  const bool reversed = emulated::backwards();
  gridDim = config->gridDim;
  emulated::block.kernel = [=] { kernel(given...); };
  const int64_t width = config->gridDim.x, blocks = width * config->gridDim.y;
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t number = reversed ? blocks - 1 - k : k;
    blockIdx = dim3(unsigned(number % width), unsigned(number / width));
    if (!emulated::run_block(int(config->blockDim.x), reversed)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
