// The cores K = (I - Y^T X / 2)^-1 of many rotations in one call, on the CPU.
//
// With X = [P, -Q] and Y = [Q, P], Y^T X consists of the three products P^T P, Q^T P and Q^T Q alone, so that P and Q are
// read once: 2 n r numbers a matrix, where the eager reference writes and reads X and Y as well (4 n r each).
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "small.h"

namespace lorsa {
namespace {

// a^T b (r, r) of two (n, r) matrices.
template <typename T>
void add_gram(const T* a, const T* b, T* out, int64_t n, int64_t r) {
  if (r == 1) {
    out[0] += cpu::dot(a, b, n);
    return;
  }
  for (int64_t i = 0; i < n; ++i) cpu::add_product(a + i * r, b + i * r, out, r, 1, r, /*transposed_a=*/true);
}

template <typename T>
void core(const T* P, const T* Q, T* K, int64_t n, int64_t r) {
  const int64_t width = 2 * r;
  std::vector<T> PP(r * r, T(0)), QP(r * r, T(0)), QQ(r * r, T(0)), M(width * width);
  add_gram(P, P, PP.data(), n, r);
  add_gram(Q, P, QP.data(), n, r);
  add_gram(Q, Q, QQ.data(), n, r);
  for (int64_t i = 0; i < r; ++i) {
    for (int64_t j = 0; j < r; ++j) {
      M[i * width + j] = QP[i * r + j];
      M[i * width + r + j] = -QQ[i * r + j];
      M[(r + i) * width + j] = PP[i * r + j];
      M[(r + i) * width + r + j] = -QP[j * r + i];
    }
  }
  cpu::cayley_inverse(M.data(), K, width);
}

// With the blocks [[a, b], [c, d]] of dM: dP = P (c + c^T) + Q (a - d^T), dQ = P (a^T - d) - Q (b + b^T).
template <typename T>
void core_backward(const T* grad_K, const T* P, const T* Q, const T* K, T* grad_P, T* grad_Q, int64_t n, int64_t r) {
  const int64_t width = 2 * r;
  const std::vector<T> dM = cpu::through_inverse(grad_K, K, width);
  std::vector<T> PtoP(r * r), QtoP(r * r), PtoQ(r * r), QtoQ(r * r);
  const auto entry = [&](int64_t i, int64_t j) { return dM[i * width + j]; };
  for (int64_t i = 0; i < r; ++i) {
    for (int64_t j = 0; j < r; ++j) {
      PtoP[i * r + j] = entry(r + i, j) + entry(r + j, i);
      QtoP[i * r + j] = entry(i, j) - entry(r + j, r + i);
      PtoQ[i * r + j] = entry(j, i) - entry(r + i, r + j);
      QtoQ[i * r + j] = -(entry(i, r + j) + entry(j, r + i));
    }
  }
  if (r == 1) {
    const T pp = PtoP[0], qp = QtoP[0], pq = PtoQ[0], qq = QtoQ[0];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      grad_P[i] = pp * P[i] + qp * Q[i];
      grad_Q[i] = pq * P[i] + qq * Q[i];
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = i * r;
    for (int64_t j = 0; j < r; ++j) grad_P[row + j] = grad_Q[row + j] = T(0);
    cpu::add_product(P + row, PtoP.data(), grad_P + row, 1, r, r);
    cpu::add_product(Q + row, QtoP.data(), grad_P + row, 1, r, r);
    cpu::add_product(P + row, PtoQ.data(), grad_Q + row, 1, r, r);
    cpu::add_product(Q + row, QtoQ.data(), grad_Q + row, 1, r, r);
  }
}

}  // namespace

Tensor rotation_core(const Tensor& P, const Tensor& Q, IntArrayRef sizes) {
  check_rotation_core(P, Q, sizes);
  const int64_t r = P.size(1), count = static_cast<int64_t>(sizes.size());
  Tensor K = at::empty({count, 2 * r, 2 * r}, P.options());
  const std::vector<int64_t> start = cpu::starts(sizes);
  AT_DISPATCH_FLOATING_TYPES(P.scalar_type(), "rotation_core", [&] {
    const scalar_t *p = P.const_data_ptr<scalar_t>(), *q = Q.const_data_ptr<scalar_t>();
    scalar_t* k = K.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        core(p + start[i] * r, q + start[i] * r, k + i * 4 * r * r, sizes[i], r);
      }
    });
  });
  return K;
}

std::tuple<Tensor, Tensor> rotation_core_backward(
    const Tensor& grad_K, const Tensor& P, const Tensor& Q, const Tensor& K, IntArrayRef sizes) {
  check_rotation_core_backward(grad_K, P, Q, K, sizes);
  const int64_t r = P.size(1), count = static_cast<int64_t>(sizes.size());
  Tensor grad_P = at::empty_like(P), grad_Q = at::empty_like(Q);
  const std::vector<int64_t> start = cpu::starts(sizes);
  AT_DISPATCH_FLOATING_TYPES(P.scalar_type(), "rotation_core_backward", [&] {
    const scalar_t *p = P.const_data_ptr<scalar_t>(), *q = Q.const_data_ptr<scalar_t>();
    const scalar_t *k = K.const_data_ptr<scalar_t>(), *g = grad_K.const_data_ptr<scalar_t>();
    scalar_t *dp = grad_P.mutable_data_ptr<scalar_t>(), *dq = grad_Q.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = start[i] * r, square = i * 4 * r * r;
        core_backward(g + square, p + row, q + row, k + square, dp + row, dq + row, sizes[i], r);
      }
    });
  });
  return {grad_P, grad_Q};
}

}  // namespace lorsa

TORCH_LIBRARY_IMPL(lorsa, CPU, m) {
  m.impl("rotation_core", &lorsa::rotation_core);
  m.impl("rotation_core_backward", &lorsa::rotation_core_backward);
}
