// What the kernels share: number types, loads of four, sums over a warp, and launching.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "launch.h"

namespace lorsa::cuda {

// Sums are kept in float32, or float64 for float64.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(__half value) { return __half2float(value); }

// Rounds to the nearest.
template <typename T>
__device__ T narrow(typename Accumulator<T>::type value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}
template <>
__device__ inline __half narrow<__half>(float value) {
  return __float2half(value);
}

// Four numbers that lie together: 8 bytes of half precision, 16 of float32, twice 16 of float64.
template <typename T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
  T at[4];
};

template <typename T>
bool fits_fours(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(Four<T>) == 0;
}

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Columns c to c + 3 of a row of n. With `vectorised` the row is aligned and n a multiple of four; without, one by one,
// and zero past the end.
template <typename T>
__device__ Four<T> load_four(const T* row, int64_t c, int64_t n, bool vectorised) {
  if (vectorised) return *reinterpret_cast<const Four<T>*>(row + c);
  Four<T> four;
#pragma unroll
  for (int i = 0; i < 4; ++i) four.at[i] = c + i < n ? row[c + i] : narrow<T>(0);
  return four;
}

template <typename T>
__device__ void store_four(T* row, int64_t c, int64_t n, bool vectorised, const Four<T>& four) {
  if (vectorised) {
    *reinterpret_cast<Four<T>*>(row + c) = four;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (c + i < n) row[c + i] = four.at[i];
  }
}

constexpr unsigned kWholeWarp = 0xffffffffu;

// Sums each of kCount values over the warp in 31 shuffles or fewer, where one tree a value takes five: each step sends
// half of the values that are left to the other half of the warp. Lane l returns the sum of value l / (32 / kCount).
template <int kCount, int kLeft = kCount, typename A>
__device__ A warp_sums(A (&values)[kCount]) {
  static_assert(kCount <= 32 && (kCount & (kCount - 1)) == 0, "a power of two that a warp can hold");
  if constexpr (kLeft > 1) {
    constexpr int kHalf = kLeft / 2, kOffset = 32 / kCount * kHalf;
    const bool upper = threadIdx.x & kOffset;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const A kept = upper ? values[i + kHalf] : values[i];
      const A given = upper ? values[i] : values[i + kHalf];
      values[i] = kept + __shfl_xor_sync(kWholeWarp, given, kOffset);
    }
    return warp_sums<kCount, kHalf>(values);
  } else {
#pragma unroll
    for (int offset = 16 / kCount; offset > 0; offset /= 2) {
      values[0] += __shfl_xor_sync(kWholeWarp, values[0], offset);
    }
    return values[0];
  }
}

// The block's shared memory, all of it given at the launch.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return shared_bytes;
}

constexpr size_t kSharedWithoutAsking = 48 * 1024;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, cudaStream_t stream, Arguments... arguments) {
  if (shared > kSharedWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Calls f with a number of the type that rotations have: float32, or float64 for float64.
template <typename Function>
cudaError_t with_factor_type(Type type, Function f) {
  return type == Type::kFloat64 ? f(double()) : f(float());
}

}  // namespace lorsa::cuda

// Returns the error of a launch from the function around it.
#define LORSA_RETURN_ERROR(expression)                              \
  do {                                                              \
    const cudaError_t error_ = (expression);                        \
    if (error_ != cudaSuccess) return error_;                       \
  } while (false)
