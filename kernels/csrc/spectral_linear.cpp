// base + [U, left] core [V, right]^T x, forward and backward, out of the device's own matrix products: with k of 16 to a
// few hundred columns they run at the speed of the multiplications, and no kernel of ours would beat them.
//
// What is saved over the eager reference: the change (T, m) is added to the base's output by the product that makes it
// (addmm), 2 T m numbers less to move and T m less to hold; x, U and V stay in their dtype; z alone, (T, k), is kept.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"

namespace lorsa {
namespace {

Tensor in_dtype_of(const Tensor& tensor, const Tensor& other) { return tensor.to(other.scalar_type()); }

// x [fixed, trained], (T, k + 2r). A BLAS has a fast path for 2r long rows times a long side, (2r, n) (n, T), and none for a
// product with 2r columns, which can take as long as the one with k.
Tensor projected(const Tensor& x, const Tensor& fixed, const OptionalTensor& trained) {
  const Tensor near = at::mm(x, fixed);
  if (!trained.has_value()) return near;
  return at::cat({near, at::mm(in_dtype_of(*trained, x).t().contiguous(), x.t()).t()}, 1);
}

// [fixed, trained], (n, k + 2r): where it makes the long side of the result, the copy is cheaper than a second product.
Tensor beside(const Tensor& fixed, const OptionalTensor& trained) {
  return trained.has_value() ? at::cat({fixed, in_dtype_of(*trained, fixed)}, 1) : fixed;
}

// core z for every row, in the core's dtype: (T, k) -> (T, k).
Tensor through_core(const Tensor& z, const Tensor& core) {
  const Tensor wide = in_dtype_of(z, core);
  return core.dim() == 1 ? wide * core : at::mm(wide, core.t());
}

}  // namespace

std::tuple<Tensor, Tensor> spectral_linear(
    const OptionalTensor& base, const Tensor& x, const Tensor& U, const Tensor& core, const Tensor& V,
    const OptionalTensor& left, const OptionalTensor& right) {
  constexpr const char* op = "lorsa::spectral_linear";
  check_spectral_linear(op, x, U, core, V, left, right);
  TORCH_CHECK(
      x.dim() == 2 && x.size(1) == V.size(0), op, ": x must be (tokens, ", V.size(0), "); got ", x.sizes(), ".");
  if (base.has_value()) {
    check_same_place(op, x, {&*base});
    TORCH_CHECK(
        base->dim() == 2 && base->size(0) == x.size(0) && base->size(1) == U.size(0) &&
            base->scalar_type() == x.scalar_type(),
        op, ": base must be (", x.size(0), ", ", U.size(0), ") ", x.scalar_type(), "; got ", base->sizes(), " ",
        base->scalar_type(), ".");
  }
  const WithoutAutocast guard;
  const Tensor z = projected(x, V, right);
  const Tensor h = in_dtype_of(through_core(z, core), x), out_of_h = beside(U, left).t();
  return {base.has_value() ? at::addmm(*base, h, out_of_h) : at::mm(h, out_of_h), z};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spectral_linear_backward(
    const Tensor& grad, const Tensor& z, const OptionalTensor& x, const Tensor& U, const Tensor& core, const Tensor& V,
    const OptionalTensor& left, const OptionalTensor& right, bool need_x) {
  constexpr const char* op = "lorsa::spectral_linear_backward";
  check_spectral_linear(op, z, U, core, V, left, right);
  check_same_place(op, z, {&grad});
  TORCH_CHECK(
      grad.dim() == 2 && grad.size(1) == U.size(0) && z.dim() == 2 && z.size(0) == grad.size(0) &&
          z.size(1) == core.size(0) && grad.scalar_type() == z.scalar_type(),
      op, ": grad must be (tokens, ", U.size(0), ") and z (tokens, ", core.size(0), ") of one dtype; got ",
      grad.sizes(), " and ", z.sizes(), ".");
  TORCH_CHECK(
      !right.has_value() || (x.has_value() && x->dim() == 2 && x->size(0) == grad.size(0) && x->size(1) == V.size(0)), op,
      ": the gradient of `right` needs x, (", grad.size(0), ", ", V.size(0), ").");
  const WithoutAutocast guard;
  const Tensor g = projected(grad, U, left);
  const Tensor wide_g = in_dtype_of(g, core), wide_z = in_dtype_of(z, core);
  const bool diagonal = core.dim() == 1;
  const Tensor grad_core = diagonal ? (wide_g * wide_z).sum(0) : at::mm(wide_g.t(), wide_z);
  const Tensor grad_z = in_dtype_of(diagonal ? wide_g * core : at::mm(wide_g, core), grad);

  Tensor grad_x = at::empty({0}, grad.options()), grad_left = at::empty({0}, core.options());
  Tensor grad_right = at::empty({0}, core.options());
  if (need_x) grad_x = at::mm(grad_z, beside(V, right).t());
  if (left.has_value()) {
    const int64_t k = V.size(1), extra = left->size(1);
    // h is (T, 2r) and not kept: made again from z. The long side of the result comes last in the product, where it is
    // contiguous: several times faster than the transposed order.
    const Tensor h = in_dtype_of(at::mm(wide_z, core.narrow(0, k, extra).t()), grad);
    grad_left = in_dtype_of(at::mm(h.t(), grad).t().contiguous(), *left);
    grad_right = in_dtype_of(at::mm(grad_z.narrow(1, k, extra).t(), *x).t().contiguous(), *right);
  }
  return {grad_x, grad_core, grad_left, grad_right};
}

}  // namespace lorsa

TORCH_LIBRARY_IMPL(lorsa, CPU, m) {
  m.impl("spectral_linear", &lorsa::spectral_linear);
  m.impl("spectral_linear_backward", &lorsa::spectral_linear_backward);
}

TORCH_LIBRARY_IMPL(lorsa, CUDA, m) {
  m.impl("spectral_linear", &lorsa::spectral_linear);
  m.impl("spectral_linear_backward", &lorsa::spectral_linear_backward);
}
