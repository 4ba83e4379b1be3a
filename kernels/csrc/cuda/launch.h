// Launchers of the CUDA kernels: raw device pointers and sizes in, the first launch error out. Nothing here waits for
// the device or allocates: what a kernel needs beside its arguments the caller passes as scratch. No torch, so that
// nvcc compiles the kernels on a machine whose torch has no CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lorsa::cuda {

enum class Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Largest rank of a rotation: one block solves for its core, 2r x 2r, in shared memory.
constexpr int64_t kMaxRank = 32;

// The matrices of packed rows: host memory, read before the launcher returns.
struct Sizes {
  const int64_t* at;
  int64_t count;
};

cudaError_t launch_rotation_core(
    Type type, const void* P, const void* Q, void* K, Sizes sizes, int64_t r, cudaStream_t stream);
cudaError_t launch_rotation_core_backward(
    Type type, const void* grad_K, const void* P, const void* Q, const void* K, void* dP, void* dQ, Sizes sizes,
    int64_t r, cudaStream_t stream);

struct Subspace {
  Type type;
  const void *P_out, *Q_out, *P_in, *Q_in, *s, *d;
  Sizes sizes;
  int64_t r;
};

// Scratch: (count, 2r, 2r).
cudaError_t launch_subspace_core(
    const Subspace& op, void* C, void* K_out, void* K_in, void* scratch, cudaStream_t stream);
// Scratch: (2, N, 4r) with N the sum of the sizes, and (count, 2r, 2r).
cudaError_t launch_subspace_core_backward(
    const Subspace& op, const void* grad_C, const void* K_out, const void* K_in, void* dP_out, void* dQ_out,
    void* dP_in, void* dQ_in, void* dd, void* scratch, cudaStream_t stream);

// `type` is that of the data: x, offset and their gradients. P, Q, K and the scratch are float64 with float64 data and
// float32 otherwise. `offset` may be null. At least one token.
struct ThinRotation {
  Type type;
  const void *P, *Q, *K, *offset;
  int64_t tokens, n, r;
  bool inverse;
};

// Numbers of scratch that the two take.
int64_t thin_rotation_scratch(const ThinRotation& op);
int64_t thin_rotation_backward_scratch(const ThinRotation& op);

cudaError_t launch_thin_rotation(const ThinRotation& op, const void* x, void* y, void* scratch, cudaStream_t stream);
// `doffset` is written where op.offset is given.
cudaError_t launch_thin_rotation_backward(
    const ThinRotation& op, const void* grad, const void* kept, bool kept_output, void* dx, void* dP, void* dQ,
    void* dK, void* doffset, void* scratch, cudaStream_t stream);

// `rows`: tokens of each sample. At least one component.
struct Sensitivity {
  Type type;
  const void *left, *right, *s;
  int64_t components;
  Sizes rows;
  int64_t kind;
};

int64_t component_sensitivity_scratch(const Sensitivity& op);
cudaError_t launch_component_sensitivity(const Sensitivity& op, void* result, void* scratch, cudaStream_t stream);

}  // namespace lorsa::cuda
