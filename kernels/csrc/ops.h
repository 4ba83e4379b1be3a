// The operators on one device, without autograd. kernels/reference.py defines what they compute; schema.cpp their names.
//
// X = [P, -Q] and Y = [Q, P] are never formed. "Packed" tensors hold the rows of several matrices under each other;
// `sizes` says how many rows each has. T: tokens, n: features, r: rank of a rotation, k: components.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <optional>
#include <tuple>

namespace lorsa {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

enum Gains : int64_t { kValue = 0, kOwn = 1, kPair = 2 };

// Packed P, Q (N, r) -> K (L, 2r, 2r), the core of every rotation.
Tensor rotation_core(const Tensor& P, const Tensor& Q, IntArrayRef sizes);
std::tuple<Tensor, Tensor> rotation_core_backward(
    const Tensor& grad_K, const Tensor& P, const Tensor& Q, const Tensor& K, IntArrayRef sizes);

// Packed P, Q (N, r) of both sides, s and d (N,) -> C of every module, flat (sum of k^2,), and both sides' cores.
std::tuple<Tensor, Tensor, Tensor> subspace_core(
    const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in, const Tensor& s, const Tensor& d,
    IntArrayRef sizes);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> subspace_core_backward(
    const Tensor& grad_C, const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in,
    const Tensor& s, const Tensor& d, const Tensor& K_out, const Tensor& K_in, IntArrayRef sizes);

// x (T, n) -> R (x - offset) + offset, or R^T for `inverse`. `keep_output` is for autograd alone: what it keeps.
Tensor thin_rotation(
    const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K, const OptionalTensor& offset, bool inverse,
    bool keep_output);
// Gradients of x, P, Q, K and the offset, from the forward's input or, for `kept_output`, its output.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> thin_rotation_backward(
    const Tensor& grad, const Tensor& kept, const Tensor& P, const Tensor& Q, const Tensor& K,
    const OptionalTensor& offset, bool inverse, bool kept_output);

// base + [U, left] core [V, right]^T x, and z = [V, right]^T x for the backward. base (T, m) or none: zero. U (m, k) and
// V (n, k) are fixed; left (m, l) and right (n, l) are trained, or none. core: (k + l, k + l), or (k,) for a diagonal.
std::tuple<Tensor, Tensor> spectral_linear(
    const OptionalTensor& base, const Tensor& x, const Tensor& U, const Tensor& core, const Tensor& V,
    const OptionalTensor& left, const OptionalTensor& right);
// Gradients of x (an empty tensor unless `need_x`), core, left and right (empty tensors where there are none). `x` is
// read for the gradient of `right` alone.
std::tuple<Tensor, Tensor, Tensor, Tensor> spectral_linear_backward(
    const Tensor& grad, const Tensor& z, const OptionalTensor& x, const Tensor& U, const Tensor& core, const Tensor& V,
    const OptionalTensor& left, const OptionalTensor& right, bool need_x);

// left = U^T dL/dy, right = V^T x (T, K) of samples with `rows` tokens each -> summed squared scores (K,).
Tensor component_sensitivity(
    const Tensor& left, const Tensor& right, const Tensor& s, IntArrayRef rows, int64_t kind);

}  // namespace lorsa
