// The operators on CUDA tensors: arguments checked, results and scratch allocated, kernels launched on torch's stream.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "../checks.h"
#include "launch.h"

namespace lorsa::cuda {
namespace {

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Type::kFloat32;
    case at::kDouble:
      return Type::kFloat64;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kHalf:
      return Type::kFloat16;
    default:
      TORCH_CHECK(
          false, "lorsa's CUDA kernels take float32, bfloat16, float16 and float64; got ", tensor.scalar_type(), ".");
  }
}

Sizes sizes_of(IntArrayRef sizes) { return {sizes.data(), static_cast<int64_t>(sizes.size())}; }

// The solve of a block is in shared memory, and row numbers have 32 bits.
void check_limits(const char* op, const Tensor& P) {
  TORCH_CHECK(
      P.size(1) <= kMaxRank, op, ": the CUDA kernels turn with rank r of at most ", kMaxRank, "; got r = ", P.size(1),
      ". LORSA_KERNELS=reference has no such limit.");
  TORCH_CHECK(
      P.size(0) <= std::numeric_limits<int32_t>::max() - 1024, op, ": the CUDA kernels count rows in 32 bits; got ",
      P.size(0), " rows.");
}

const void* pointer(const Tensor& tensor) { return tensor.const_data_ptr(); }
const void* pointer(const OptionalTensor& tensor) { return tensor.has_value() ? tensor->const_data_ptr() : nullptr; }
void* pointer(Tensor& tensor) { return tensor.mutable_data_ptr(); }

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

}  // namespace

Tensor rotation_core(const Tensor& P, const Tensor& Q, IntArrayRef sizes) {
  check_rotation_core(P, Q, sizes);
  check_limits("lorsa::rotation_core", P);
  const c10::cuda::CUDAGuard guard(P.device());
  const int64_t r = P.size(1);
  Tensor K = at::empty({static_cast<int64_t>(sizes.size()), 2 * r, 2 * r}, P.options());
  C10_CUDA_CHECK(
      launch_rotation_core(type_of(P), pointer(P), pointer(Q), pointer(K), sizes_of(sizes), r, stream()));
  return K;
}

std::tuple<Tensor, Tensor> rotation_core_backward(
    const Tensor& grad_K, const Tensor& P, const Tensor& Q, const Tensor& K, IntArrayRef sizes) {
  check_rotation_core_backward(grad_K, P, Q, K, sizes);
  check_limits("lorsa::rotation_core_backward", P);
  const c10::cuda::CUDAGuard guard(P.device());
  Tensor dP = at::empty_like(P), dQ = at::empty_like(Q);
  C10_CUDA_CHECK(launch_rotation_core_backward(
      type_of(P), pointer(grad_K), pointer(P), pointer(Q), pointer(K), pointer(dP), pointer(dQ), sizes_of(sizes),
      P.size(1), stream()));
  return {dP, dQ};
}

std::tuple<Tensor, Tensor, Tensor> subspace_core(
    const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in, const Tensor& s, const Tensor& d,
    IntArrayRef sizes) {
  check_subspace_core(P_out, Q_out, P_in, Q_in, s, d, sizes);
  check_limits("lorsa::subspace_core", P_out);
  const c10::cuda::CUDAGuard guard(P_out.device());
  const int64_t r = P_out.size(1), count = static_cast<int64_t>(sizes.size());
  int64_t entries = 0;
  for (int64_t k : sizes) entries += k * k;
  Tensor C = at::empty({entries}, P_out.options());
  Tensor K_out = at::empty({count, 2 * r, 2 * r}, P_out.options()), K_in = at::empty_like(K_out);
  Tensor scratch = at::empty_like(K_out);
  const Subspace op{
      type_of(P_out), pointer(P_out), pointer(Q_out), pointer(P_in), pointer(Q_in), pointer(s), pointer(d),
      sizes_of(sizes), r};
  C10_CUDA_CHECK(launch_subspace_core(op, pointer(C), pointer(K_out), pointer(K_in), pointer(scratch), stream()));
  return {C, K_out, K_in};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> subspace_core_backward(
    const Tensor& grad_C, const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in,
    const Tensor& s, const Tensor& d, const Tensor& K_out, const Tensor& K_in, IntArrayRef sizes) {
  check_subspace_core_backward(grad_C, P_out, Q_out, P_in, Q_in, s, d, K_out, K_in, sizes);
  check_limits("lorsa::subspace_core_backward", P_out);
  const c10::cuda::CUDAGuard guard(P_out.device());
  const int64_t r = P_out.size(1), rows = P_out.size(0);
  Tensor dP_out = at::empty_like(P_out), dQ_out = at::empty_like(Q_out), dP_in = at::empty_like(P_in);
  Tensor dQ_in = at::empty_like(Q_in), dd = at::empty_like(d);
  Tensor scratch = at::empty({8 * rows * r + K_out.numel()}, P_out.options());
  const Subspace op{
      type_of(P_out), pointer(P_out), pointer(Q_out), pointer(P_in), pointer(Q_in), pointer(s), pointer(d),
      sizes_of(sizes), r};
  C10_CUDA_CHECK(launch_subspace_core_backward(
      op, pointer(grad_C), pointer(K_out), pointer(K_in), pointer(dP_out), pointer(dQ_out), pointer(dP_in),
      pointer(dQ_in), pointer(dd), pointer(scratch), stream()));
  return {dP_out, dQ_out, dP_in, dQ_in, dd};
}

Tensor thin_rotation(
    const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K, const OptionalTensor& offset, bool inverse,
    bool /*keep_output*/) {
  check_thin_rotation(x, P, Q, K, offset);
  check_limits("lorsa::thin_rotation", P);
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const ThinRotation op{
      type_of(x), pointer(P), pointer(Q), pointer(K), pointer(offset), x.size(0), x.size(1), P.size(1), inverse};
  Tensor scratch = at::empty({thin_rotation_scratch(op)}, P.options());
  C10_CUDA_CHECK(launch_thin_rotation(op, pointer(x), pointer(y), pointer(scratch), stream()));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> thin_rotation_backward(
    const Tensor& grad, const Tensor& kept, const Tensor& P, const Tensor& Q, const Tensor& K,
    const OptionalTensor& offset, bool inverse, bool kept_output) {
  check_thin_rotation_backward(grad, kept, P, Q, K, offset);
  check_limits("lorsa::thin_rotation_backward", P);
  const c10::cuda::CUDAGuard guard(grad.device());
  Tensor dx = at::empty_like(grad), dP = at::empty_like(P), dQ = at::empty_like(Q), dK = at::empty_like(K);
  Tensor doffset = at::empty({offset.has_value() ? P.size(0) : 0}, P.options());
  if (grad.numel() == 0) return {dx, dP.zero_(), dQ.zero_(), dK.zero_(), doffset.zero_()};
  const ThinRotation op{
      type_of(grad), pointer(P), pointer(Q), pointer(K), pointer(offset), grad.size(0), grad.size(1), P.size(1),
      inverse};
  Tensor scratch = at::empty({thin_rotation_backward_scratch(op)}, P.options());
  C10_CUDA_CHECK(launch_thin_rotation_backward(
      op, pointer(grad), pointer(kept), kept_output, pointer(dx), pointer(dP), pointer(dQ), pointer(dK),
      pointer(doffset), pointer(scratch), stream()));
  return {dx, dP, dQ, dK, doffset};
}

Tensor component_sensitivity(
    const Tensor& left, const Tensor& right, const Tensor& s, IntArrayRef rows, int64_t kind) {
  check_component_sensitivity(left, right, s, rows, kind);
  TORCH_CHECK(
      left.size(0) <= std::numeric_limits<int32_t>::max(),
      "lorsa::component_sensitivity: the CUDA kernels count tokens in 32 bits; got ", left.size(0), " tokens.");
  const c10::cuda::CUDAGuard guard(left.device());
  Tensor result = at::empty_like(s);
  if (s.numel() == 0) return result;
  const Sensitivity op{type_of(left), pointer(left), pointer(right), pointer(s), s.size(0), sizes_of(rows), kind};
  Tensor scratch = at::empty({component_sensitivity_scratch(op)}, s.options());
  C10_CUDA_CHECK(launch_component_sensitivity(op, pointer(result), pointer(scratch), stream()));
  return result;
}

}  // namespace lorsa::cuda

TORCH_LIBRARY_IMPL(lorsa, CUDA, m) {
  m.impl("rotation_core", &lorsa::cuda::rotation_core);
  m.impl("rotation_core_backward", &lorsa::cuda::rotation_core_backward);
  m.impl("subspace_core", &lorsa::cuda::subspace_core);
  m.impl("subspace_core_backward", &lorsa::cuda::subspace_core_backward);
  m.impl("thin_rotation", &lorsa::cuda::thin_rotation);
  m.impl("thin_rotation_backward", &lorsa::cuda::thin_rotation_backward);
  m.impl("component_sensitivity", &lorsa::cuda::component_sensitivity);
}
