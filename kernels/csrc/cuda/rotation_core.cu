// The cores K = (I - Y^T X / 2)^-1 of every rotation of a model, forward and backward, in one launch each.
//
// Forward: one block a matrix. It reads P and Q once, 2 n r numbers, and writes 4 r^2. The eager reference writes X and
// Y and reads them again for their product, 10 n r numbers moved, in eight launches a matrix or more.
// Backward: reads P and Q and writes dP and dQ, 4 n r numbers; eager moves some 30 n r.
#include "small_matrix.cuh"

namespace lorsa::cuda {
namespace {

// First rows of the matrices of one launch, as a kernel argument: nothing is copied to the device, nothing waited for.
// All arguments of a launch have 4 KB.
constexpr int64_t kMatrices = 960;

struct Starts {
  int32_t at[kMatrices + 1];
};

// Rows that one block of the backward pass writes. The small matrices are worth repeating for so many.
constexpr int64_t kSlice = 4096;
// Rows that a thread of it has under way.
constexpr int kRows = 4;

// Four blocks a multiprocessor at rank 1 in float32: a model of 224 layers has all its matrices under way at once.
template <typename A, int kTile>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 2 : kTile == 2 ? 4 : 3) core_kernel(
    const A* P, const A* Q, A* K, int r, Starts starts) {
  A* shared = reinterpret_cast<A*>(shared_memory());
  const int64_t first = starts.at[blockIdx.x], rows = starts.at[blockIdx.x + 1] - first;
  const int width = 2 * r;
  const Small<A> core{shared, width};
  block_core<kTile>(Factors<A>{P + first * r, Q + first * r, r}, rows, core, shared + Small<A>::numbers(width));
  A* out = K + int64_t{blockIdx.x} * width * width;
  block_entries(width, [&](int i, int j) { out[i * width + j] = core(i, j); });
}

template <typename A>
__global__ void __launch_bounds__(kThreads) core_backward_kernel(
    const A* __restrict__ grad_K, const A* __restrict__ P, const A* __restrict__ Q, const A* __restrict__ K,
    A* __restrict__ dP, A* __restrict__ dQ, int r, Starts starts) {
  const int64_t first = starts.at[blockIdx.x] + blockIdx.y * kSlice, end = starts.at[blockIdx.x + 1];
  if (first >= end) return;
  const int64_t rows = end - first < kSlice ? end - first : kSlice;

  A* shared = reinterpret_cast<A*>(shared_memory());
  const int width = 2 * r;
  const Small<A> core{shared, width}, grad{core.at + Small<A>::numbers(width), width};
  const Small<A> N{grad.at + Small<A>::numbers(width), width};
  const int64_t matrix = int64_t{blockIdx.x} * width * width;
  block_entries(width, [&](int i, int j) {
    core(i, j) = K[matrix + i * width + j];
    grad(i, j) = grad_K[matrix + i * width + j];
  });
  block_core_backward(core, grad, N);

  // dB = B N. A thread has column c of dP and dQ, in every step-th row; the threads of a row lie side by side.
  const Factors<A> B{P + first * r, Q + first * r, r};
  const int c = threadIdx.x % r, step = kThreads / r;
  const int64_t own = threadIdx.x / r;
  if (own >= step) return;
  for (int64_t row = own; row < rows; row += kRows * step) {
    A p[kRows] = {}, q[kRows] = {};
    for (int j = 0; j < width; ++j) {
      const A to_p = N(j, c), to_q = N(j, r + c);
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const A value = row + u * step < rows ? B(row + u * step, j) : A(0);
        p[u] += value * to_p;
        q[u] += value * to_q;
      }
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t place = (first + row + u * step) * r + c;
      if (row + u * step < rows) {
        dP[place] = p[u];
        dQ[place] = q[u];
      }
    }
  }
}

// Calls launch_chunk(starts, first matrix, matrices, first row, rows of the largest) for as many matrices at a time as
// fit into a kernel's arguments.
template <typename Function>
cudaError_t in_chunks(Sizes sizes, Function launch_chunk) {
  int64_t row = 0;
  for (int64_t first = 0; first < sizes.count; first += kMatrices) {
    const int64_t count = sizes.count - first < kMatrices ? sizes.count - first : kMatrices;
    Starts starts = {};
    int64_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t size = sizes.at[first + i];
      starts.at[i + 1] = static_cast<int32_t>(starts.at[i] + size);
      largest = size > largest ? size : largest;
    }
    LORSA_RETURN_ERROR(launch_chunk(starts, first, count, row, largest));
    row += starts.at[count];
  }
  return cudaSuccess;
}

template <typename A, int kTile>
cudaError_t launch_core(const void* P, const void* Q, void* K, Sizes sizes, int64_t r, cudaStream_t stream) {
  const size_t shared = sizeof(A) * (Small<A>::numbers(2 * r) + core_numbers<kTile>(r));
  return in_chunks(sizes, [&](const Starts& starts, int64_t first, int64_t count, int64_t row, int64_t) {
    return launch(
        core_kernel<A, kTile>, dim3(count), kThreads, shared, stream, static_cast<const A*>(P) + row * r,
        static_cast<const A*>(Q) + row * r, static_cast<A*>(K) + first * 4 * r * r, r, starts);
  });
}

}  // namespace

cudaError_t launch_rotation_core(
    Type type, const void* P, const void* Q, void* K, Sizes sizes, int64_t r, cudaStream_t stream) {
  return with_factor_type(type, [&](auto zero) {
    using A = decltype(zero);
    return r == 1 ? launch_core<A, 2>(P, Q, K, sizes, r, stream) : launch_core<A, 4>(P, Q, K, sizes, r, stream);
  });
}

cudaError_t launch_rotation_core_backward(
    Type type, const void* grad_K, const void* P, const void* Q, const void* K, void* dP, void* dQ, Sizes sizes,
    int64_t r, cudaStream_t stream) {
  return with_factor_type(type, [&](auto zero) {
    using A = decltype(zero);
    const size_t shared = sizeof(A) * 3 * Small<A>::numbers(2 * r);
    return in_chunks(sizes, [&](const Starts& starts, int64_t first, int64_t count, int64_t row, int64_t largest) {
      const int64_t core = first * 4 * r * r, factor = row * r;
      return launch(
          core_backward_kernel<A>, dim3(count, divide_up(largest, kSlice)), kThreads, shared, stream,
          static_cast<const A*>(grad_K) + core, static_cast<const A*>(P) + factor, static_cast<const A*>(Q) + factor,
          static_cast<const A*>(K) + core, static_cast<A*>(dP) + factor, static_cast<A*>(dQ) + factor, r, starts);
    });
  });
}

}  // namespace lorsa::cuda
