// What every operator asks of its arguments, on any device: a sentence instead of a crash.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <numeric>

#include "ops.h"

namespace lorsa {

// Within, torch's own operators run in the dtypes that they are given.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

inline void check_same_place(const char* op, const Tensor& reference, std::initializer_list<const Tensor*> others) {
  TORCH_CHECK(reference.is_contiguous(), op, ": every tensor must be contiguous.");
  for (const Tensor* other : others) {
    TORCH_CHECK(other->is_contiguous(), op, ": every tensor must be contiguous.");
    TORCH_CHECK(
        other->device() == reference.device(), op, ": the tensors must be on one device; got ", reference.device(),
        " and ", other->device(), ".");
  }
}

inline void check_parameters(const char* op, const Tensor& reference, std::initializer_list<const Tensor*> others) {
  TORCH_CHECK(
      reference.scalar_type() == at::kFloat || reference.scalar_type() == at::kDouble, op,
      ": rotations are float32 or float64; got ", reference.scalar_type(), ".");
  for (const Tensor* other : others) {
    TORCH_CHECK(
        other->scalar_type() == reference.scalar_type(), op, ": P, Q, s, d and the cores must have one dtype; got ",
        reference.scalar_type(), " and ", other->scalar_type(), ".");
  }
  check_same_place(op, reference, others);
}

inline void check_packed(const char* op, const Tensor& P, const Tensor& Q, IntArrayRef sizes) {
  TORCH_CHECK(
      P.dim() == 2 && P.sizes() == Q.sizes() && P.size(1) >= 1, op,
      ": P and Q must have the same shape (rows, r) with r of at least 1; got ", P.sizes(), " and ", Q.sizes(), ".");
  int64_t rows = 0;
  for (int64_t size : sizes) {
    TORCH_CHECK(size >= 1, op, ": every matrix has at least one row; got sizes ", sizes, ".");
    rows += size;
  }
  TORCH_CHECK(rows == P.size(0), op, ": sizes add up to ", rows, " rows and P has ", P.size(0), ".");
}

inline void check_cores(const char* op, const Tensor& K, const Tensor& P, int64_t count) {
  const int64_t width = 2 * P.size(1);
  TORCH_CHECK(
      K.dim() == 3 && K.size(0) == count && K.size(1) == width && K.size(2) == width, op, ": the cores must be (", count,
      ", ", width, ", ", width, "); got ", K.sizes(), ".");
}

inline void check_rotation_core(const Tensor& P, const Tensor& Q, IntArrayRef sizes) {
  check_parameters("lorsa::rotation_core", P, {&Q});
  check_packed("lorsa::rotation_core", P, Q, sizes);
}

inline void check_rotation_core_backward(
    const Tensor& grad_K, const Tensor& P, const Tensor& Q, const Tensor& K, IntArrayRef sizes) {
  constexpr const char* op = "lorsa::rotation_core_backward";
  check_parameters(op, P, {&Q, &K, &grad_K});
  check_packed(op, P, Q, sizes);
  check_cores(op, K, P, static_cast<int64_t>(sizes.size()));
  check_cores(op, grad_K, P, static_cast<int64_t>(sizes.size()));
}

inline void check_subspace(
    const char* op, const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in, const Tensor& s,
    const Tensor& d, IntArrayRef sizes) {
  check_parameters(op, P_out, {&Q_out, &P_in, &Q_in, &s, &d});
  check_packed(op, P_out, Q_out, sizes);
  check_packed(op, P_in, Q_in, sizes);
  TORCH_CHECK(
      P_in.size(1) == P_out.size(1), op, ": both sides turn with one rank; got ", P_out.size(1), " and ", P_in.size(1),
      ".");
  TORCH_CHECK(
      s.dim() == 1 && s.size(0) == P_out.size(0) && d.sizes() == s.sizes(), op, ": s and d must have ", P_out.size(0),
      " entries, one a row of P; got ", s.sizes(), " and ", d.sizes(), ".");
}

inline void check_subspace_core(
    const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in, const Tensor& s, const Tensor& d,
    IntArrayRef sizes) {
  check_subspace("lorsa::subspace_core", P_out, Q_out, P_in, Q_in, s, d, sizes);
}

inline void check_subspace_core_backward(
    const Tensor& grad_C, const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in,
    const Tensor& s, const Tensor& d, const Tensor& K_out, const Tensor& K_in, IntArrayRef sizes) {
  constexpr const char* op = "lorsa::subspace_core_backward";
  check_subspace(op, P_out, Q_out, P_in, Q_in, s, d, sizes);
  check_parameters(op, P_out, {&grad_C, &K_out, &K_in});
  check_cores(op, K_out, P_out, static_cast<int64_t>(sizes.size()));
  check_cores(op, K_in, P_in, static_cast<int64_t>(sizes.size()));
  const int64_t entries = std::accumulate(
      sizes.begin(), sizes.end(), int64_t{0}, [](int64_t sum, int64_t size) { return sum + size * size; });
  TORCH_CHECK(
      grad_C.dim() == 1 && grad_C.size(0) == entries, op, ": the gradient of C must have ", entries, " entries; got ",
      grad_C.sizes(), ".");
}

inline void check_rotated(
    const char* op, const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K, const OptionalTensor& offset) {
  check_parameters(op, P, {&Q, &K});
  check_same_place(op, P, {&x});
  TORCH_CHECK(
      P.dim() == 2 && P.sizes() == Q.sizes() && P.size(1) >= 1, op,
      ": P and Q must have the same shape (features, r) with r of at least 1; got ", P.sizes(), " and ", Q.sizes(),
      ".");
  const int64_t width = 2 * P.size(1);
  TORCH_CHECK(
      K.dim() == 2 && K.size(0) == width && K.size(1) == width, op, ": the core must be (", width, ", ", width,
      "); got ", K.sizes(), ".");
  TORCH_CHECK(
      x.dim() == 2 && x.size(1) == P.size(0), op, ": x must be (tokens, ", P.size(0), "); got ", x.sizes(), ".");
  TORCH_CHECK(at::isFloatingType(x.scalar_type()), op, ": x must be floating point; got ", x.scalar_type(), ".");
  TORCH_CHECK(
      (x.scalar_type() == at::kDouble) == (P.scalar_type() == at::kDouble), op,
      ": float64 goes with float64; got x ", x.scalar_type(), " and P ", P.scalar_type(), ".");
  if (offset.has_value()) {
    check_same_place(op, x, {&*offset});
    TORCH_CHECK(
        offset->scalar_type() == x.scalar_type() && offset->dim() == 1 && offset->size(0) == x.size(1), op,
        ": the offset must be (", x.size(1), ",) ", x.scalar_type(), "; got ", offset->sizes(), " ",
        offset->scalar_type(), ".");
  }
}

inline void check_thin_rotation(
    const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K, const OptionalTensor& offset) {
  check_rotated("lorsa::thin_rotation", x, P, Q, K, offset);
}

inline void check_thin_rotation_backward(
    const Tensor& grad, const Tensor& kept, const Tensor& P, const Tensor& Q, const Tensor& K,
    const OptionalTensor& offset) {
  constexpr const char* op = "lorsa::thin_rotation_backward";
  check_rotated(op, kept, P, Q, K, offset);
  check_same_place(op, kept, {&grad});
  TORCH_CHECK(
      grad.sizes() == kept.sizes() && grad.scalar_type() == kept.scalar_type(), op,
      ": the gradient must be like what was kept, ", kept.sizes(), " ", kept.scalar_type(), "; got ", grad.sizes(), " ",
      grad.scalar_type(), ".");
}

inline void check_spectral_linear(
    const char* op, const Tensor& x_or_z, const Tensor& U, const Tensor& core, const Tensor& V,
    const OptionalTensor& left, const OptionalTensor& right) {
  check_same_place(op, x_or_z, {&U, &core, &V});
  TORCH_CHECK(
      U.dim() == 2 && V.dim() == 2 && U.size(1) == V.size(1), op, ": U must be (m, k) and V (n, k); got ", U.sizes(),
      " and ", V.sizes(), ".");
  TORCH_CHECK(at::isFloatingType(V.scalar_type()), op, ": V must be floating point; got ", V.scalar_type(), ".");
  TORCH_CHECK(
      x_or_z.scalar_type() == V.scalar_type() && U.scalar_type() == V.scalar_type(), op,
      ": x, U and V must have one dtype; got ", x_or_z.scalar_type(), ", ", U.scalar_type(), " and ", V.scalar_type(),
      ".");
  TORCH_CHECK(
      core.scalar_type() == at::kFloat || core.scalar_type() == at::kDouble, op,
      ": the core is float32 or float64; got ", core.scalar_type(), ".");
  const int64_t k = V.size(1);
  TORCH_CHECK(left.has_value() == right.has_value(), op, ": left and right come together or not at all.");
  if (left.has_value()) {
    check_same_place(op, x_or_z, {&*left, &*right});
    TORCH_CHECK(
        left->dim() == 2 && right->dim() == 2 && left->size(0) == U.size(0) && right->size(0) == V.size(0) &&
            left->size(1) == right->size(1) && left->scalar_type() == right->scalar_type(),
        op, ": left must be (", U.size(0), ", l) and right (", V.size(0), ", l) of one dtype; got ", left->sizes(),
        " and ", right->sizes(), ".");
  }
  const int64_t width = k + (left.has_value() ? left->size(1) : 0);
  TORCH_CHECK(
      (core.dim() == 1 && !left.has_value() && core.size(0) == k) ||
          (core.dim() == 2 && core.size(0) == width && core.size(1) == width),
      op, ": the core must be (", width, ", ", width, ")", left.has_value() ? "" : " or its diagonal", "; got ",
      core.sizes(), ".");
}

inline void check_component_sensitivity(
    const Tensor& left, const Tensor& right, const Tensor& s, IntArrayRef rows, int64_t kind) {
  constexpr const char* op = "lorsa::component_sensitivity";
  check_parameters(op, left, {&right, &s});
  TORCH_CHECK(
      left.dim() == 2 && left.sizes() == right.sizes(), op,
      ": left and right must have the same shape (tokens, components); got ", left.sizes(), " and ", right.sizes(), ".");
  TORCH_CHECK(
      s.dim() == 1 && s.size(0) == left.size(1), op, ": s must have ", left.size(1), " entries; got ", s.sizes(), ".");
  int64_t tokens = 0;
  for (int64_t count : rows) {
    TORCH_CHECK(count >= 0, op, ": a sample has no negative number of tokens; got ", count, ".");
    tokens += count;
  }
  TORCH_CHECK(
      tokens == left.size(0), op, ": the samples have ", tokens, " tokens together, and left has ", left.size(0), ".");
  TORCH_CHECK(kind >= kValue && kind <= kPair, op, ": kind is 0 (value), 1 (own) or 2 (pair); got ", kind, ".");
}

}  // namespace lorsa
