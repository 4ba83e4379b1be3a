// As much of CUDA as the kernels use, on the host, so that their own text runs where there is no GPU.
//
// The threads of a block are fibers that run in turn, each until it meets a barrier. The order of turns can be chosen:
// kernels that lack a barrier give different results in different orders. Shared memory is filled with NaN before each
// block, and what a block writes beyond what it asked for is noticed.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace host {

// Where a fiber waits.
enum class At { kNothing, kWarpBarrier, kBlockBarrier, kEnd };

void wait(At barrier);
// What a thread's partner in the warp gave to the shuffle that both are in.
uint64_t exchange(uint64_t given, int offset);
void run_block(size_t shared, const std::function<void()>& body);

// As small as an A100's; few multiprocessors, so that few rows fill them.
constexpr int kMultiprocessors = 2, kMostShared = 163 * 1024, kSharedOfMultiprocessor = 164 * 1024;
inline std::map<const void*, size_t> shared_allowed;

}  // namespace host

inline void __syncthreads() { host::wait(host::At::kBlockBarrier); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = host::exchange(bits, offset);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > host::kMostShared) return cudaErrorInvalidValue;
  host::shared_allowed[kernel] = bytes;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? host::kMultiprocessors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? host::kMostShared
                                                                  : host::kSharedOfMultiprocessor;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4000, "the arguments of a launch have 4 KB, alignment included");
  const dim3 grid = config->gridDim, block = config->blockDim;
  const auto allowed = host::shared_allowed.find(reinterpret_cast<const void*>(kernel));
  const size_t most = allowed == host::shared_allowed.end() ? 48 * 1024 : allowed->second;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidValue;
  if (block.x == 0 || block.x > 1024 || config->dynamicSmemBytes > most) return cudaErrorInvalidValue;
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        host::run_block(config->dynamicSmemBytes, [&] { kernel(arguments...); });
      }
    }
  }
  return cudaSuccess;
}
