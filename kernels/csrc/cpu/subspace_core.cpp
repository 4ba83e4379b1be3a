// C = R_U diag(s + d) R_V^T - diag(s) of many modules in one call, on the CPU.
//
// R_U and R_V are never formed: with D = diag(s + d), F = K_out Y_out^T D, H^T = K_in Y_in^T D and
// T = K_out (Y_out^T D Y_in) K_in^T,
//     C = diag(d) + X_out (F + T X_in^T) + H X_in^T,
// 8 r k^2 multiplications where the reference's products of k x k matrices take 2 k^3, and nothing of k x k but C is
// written. The backward pass reads dC twice and C never.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "../checks.h"
#include "small.h"

namespace lorsa {
namespace {

// One side of one module: X^T, Y^T and Y^T D (2r, k), K (2r, 2r), and K Y^T D (2r, k).
template <typename T>
struct Side {
  Side(const T* P, const T* Q, const T* D, int64_t k, int64_t r)
      : k(k), r(r), width(2 * r), x(width * k), y(width * k), scaled(width * k), turned(width * k, T(0)), K(width * width) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < r; ++j) {
        x[j * k + i] = y[(r + j) * k + i] = P[i * r + j];
        y[j * k + i] = Q[i * r + j];
        x[(r + j) * k + i] = -Q[i * r + j];
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t i = 0; i < k; ++i) scaled[j * k + i] = y[j * k + i] * D[i];
    }
  }

  void solve() {
    std::vector<T> M(width * width, T(0));
    cpu::add_product_bt(y.data(), x.data(), M.data(), width, k, width);
    cpu::cayley_inverse(M.data(), K.data(), width);
  }

  void turn() { cpu::add_product(K.data(), scaled.data(), turned.data(), width, width, k); }

  // Gradients of P and Q (k, r) from those of X^T and Y^T, and of K, which goes through both.
  void finish(std::vector<T>& grad_x, std::vector<T>& grad_y, const std::vector<T>& grad_K, T* grad_P, T* grad_Q) const {
    const std::vector<T> grad_M = cpu::through_inverse(grad_K.data(), K.data(), width);
    cpu::add_product(grad_M.data(), y.data(), grad_x.data(), width, width, k, /*transposed_a=*/true);
    cpu::add_product(grad_M.data(), x.data(), grad_y.data(), width, width, k);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < r; ++j) {
        grad_P[i * r + j] = grad_x[j * k + i] + grad_y[(r + j) * k + i];
        grad_Q[i * r + j] = grad_y[j * k + i] - grad_x[(r + j) * k + i];
      }
    }
  }

  int64_t k, r, width;
  std::vector<T> x, y, scaled, turned, K;
};

template <typename T>
std::vector<T> new_values(const T* s, const T* d, int64_t k) {
  std::vector<T> D(k);
  for (int64_t i = 0; i < k; ++i) D[i] = s[i] + d[i];
  return D;
}

// S = Y_out^T D Y_in and K_out S, both (2r, 2r), and T = K_out S K_in^T.
template <typename T>
struct Middle {
  Middle(const Side<T>& out, const Side<T>& in)
      : S(out.width * out.width, T(0)), KS(S.size(), T(0)), both(S.size(), T(0)) {
    const int64_t width = out.width;
    cpu::add_product_bt(out.scaled.data(), in.y.data(), S.data(), width, out.k, width);
    cpu::add_product(out.K.data(), S.data(), KS.data(), width, width, width);
    cpu::add_product_bt(KS.data(), in.K.data(), both.data(), width, width, width);
  }
  std::vector<T> S, KS, both;
};

template <typename T>
void core(
    const T* P_out, const T* Q_out, const T* P_in, const T* Q_in, const T* s, const T* d, T* C, T* K_out, T* K_in,
    int64_t k, int64_t r) {
  const std::vector<T> D = new_values(s, d, k);
  Side<T> out(P_out, Q_out, D.data(), k, r), in(P_in, Q_in, D.data(), k, r);
  out.solve();
  in.solve();
  out.turn();
  in.turn();
  std::copy(out.K.begin(), out.K.end(), K_out);
  std::copy(in.K.begin(), in.K.end(), K_in);
  const Middle<T> middle(out, in);
  std::vector<T> inner = out.turned;
  cpu::add_product(middle.both.data(), in.x.data(), inner.data(), out.width, out.width, k);
  std::fill(C, C + k * k, T(0));
  for (int64_t i = 0; i < k; ++i) {
    T* row = C + i * k;
    for (int64_t j = 0; j < out.width; ++j) {
      cpu::axpy(out.x[j * k + i], inner.data() + j * k, row, k);
      cpu::axpy(in.turned[j * k + i], in.x.data() + j * k, row, k);
    }
    row[i] += d[i];
  }
}

template <typename T>
void core_backward(
    const T* G, const T* P_out, const T* Q_out, const T* P_in, const T* Q_in, const T* s, const T* d, const T* K_out,
    const T* K_in, T* dP_out, T* dQ_out, T* dP_in, T* dQ_in, T* dd, int64_t k, int64_t r) {
  const std::vector<T> D = new_values(s, d, k);
  Side<T> out(P_out, Q_out, D.data(), k, r), in(P_in, Q_in, D.data(), k, r);
  const int64_t width = out.width, thin = width * k, square = width * width;
  std::copy(K_out, K_out + square, out.K.begin());
  std::copy(K_in, K_in + square, in.K.begin());
  out.turn();
  in.turn();
  const Middle<T> middle(out, in);

  // Gradients of X_out^T, X_in^T, F and H^T: products of G with thin matrices, in one pass over its rows.
  std::vector<T> dx_out(thin, T(0)), dx_in(thin, T(0)), d_out(thin, T(0)), d_in(thin, T(0));
  for (int64_t i = 0; i < k; ++i) {
    const T* row = G + i * k;
    for (int64_t j = 0; j < width; ++j) {
      dx_out[j * k + i] = cpu::dot(row, out.turned.data() + j * k, k);
      d_in[j * k + i] = cpu::dot(row, in.x.data() + j * k, k);
      cpu::axpy(out.x[j * k + i], row, d_out.data() + j * k, k);
      cpu::axpy(in.turned[j * k + i], row, dx_in.data() + j * k, k);
    }
  }
  cpu::add_product(middle.both.data(), d_in.data(), dx_out.data(), width, width, k);
  cpu::add_product(middle.both.data(), d_out.data(), dx_in.data(), width, width, k, /*transposed_a=*/true);

  // T, and what it is made of.
  std::vector<T> d_both(square, T(0)), dK_out(square, T(0)), dK_in(square, T(0)), product(square, T(0)), dS(square, T(0));
  cpu::add_product_bt(d_out.data(), in.x.data(), d_both.data(), width, k, width);
  cpu::add_product(d_both.data(), in.K.data(), product.data(), width, width, width);
  cpu::add_product(out.K.data(), product.data(), dS.data(), width, width, width, /*transposed_a=*/true);
  cpu::add_product_bt(d_out.data(), out.scaled.data(), dK_out.data(), width, k, width);
  cpu::add_product_bt(product.data(), middle.S.data(), dK_out.data(), width, width, width);
  cpu::add_product_bt(d_in.data(), in.scaled.data(), dK_in.data(), width, k, width);
  cpu::add_product(d_both.data(), middle.KS.data(), dK_in.data(), width, width, width, /*transposed_a=*/true);

  // Y^T D of both sides, hence Y and D. S = (Y_out^T D) Y_in = Y_out^T (Y_in^T D)^T counts D once.
  std::vector<T> dscaled_out(thin, T(0)), dscaled_in(thin, T(0)), dy_in(thin, T(0));
  cpu::add_product(out.K.data(), d_out.data(), dscaled_out.data(), width, width, k, /*transposed_a=*/true);
  cpu::add_product(dS.data(), in.y.data(), dscaled_out.data(), width, width, k);
  cpu::add_product(in.K.data(), d_in.data(), dscaled_in.data(), width, width, k, /*transposed_a=*/true);
  cpu::add_product(dS.data(), out.scaled.data(), dy_in.data(), width, width, k, /*transposed_a=*/true);
  std::vector<T> dy_out(thin);
  for (int64_t i = 0; i < k; ++i) dd[i] = G[i * k + i];
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t at = j * k + i;
      dd[i] += dscaled_out[at] * out.y[at] + dscaled_in[at] * in.y[at];
      dy_out[at] = dscaled_out[at] * D[i];
      dy_in[at] += dscaled_in[at] * D[i];
    }
  }
  out.finish(dx_out, dy_out, dK_out, dP_out, dQ_out);
  in.finish(dx_in, dy_in, dK_in, dP_in, dQ_in);
}

std::vector<int64_t> square_starts(IntArrayRef sizes) {
  std::vector<int64_t> squares;
  for (int64_t size : sizes) squares.push_back(size * size);
  return cpu::starts(squares);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> subspace_core(
    const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in, const Tensor& s, const Tensor& d,
    IntArrayRef sizes) {
  check_subspace_core(P_out, Q_out, P_in, Q_in, s, d, sizes);
  const int64_t r = P_out.size(1), count = static_cast<int64_t>(sizes.size()), square = 4 * r * r;
  const std::vector<int64_t> start = cpu::starts(sizes), entry = square_starts(sizes);
  Tensor C = at::empty({entry.back()}, s.options());
  Tensor K_out = at::empty({count, 2 * r, 2 * r}, s.options()), K_in = at::empty_like(K_out);
  AT_DISPATCH_FLOATING_TYPES(s.scalar_type(), "subspace_core", [&] {
    const auto data = [](const Tensor& tensor) { return tensor.const_data_ptr<scalar_t>(); };
    const auto result = [](Tensor& tensor) { return tensor.mutable_data_ptr<scalar_t>(); };
    const scalar_t *p_out = data(P_out), *q_out = data(Q_out), *p_in = data(P_in), *q_in = data(Q_in);
    const scalar_t *values = data(s), *change = data(d);
    scalar_t *c = result(C), *k_out = result(K_out), *k_in = result(K_in);
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = start[i] * r;
        core(
            p_out + row, q_out + row, p_in + row, q_in + row, values + start[i], change + start[i], c + entry[i],
            k_out + i * square, k_in + i * square, sizes[i], r);
      }
    });
  });
  return {C, K_out, K_in};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> subspace_core_backward(
    const Tensor& grad_C, const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in,
    const Tensor& s, const Tensor& d, const Tensor& K_out, const Tensor& K_in, IntArrayRef sizes) {
  check_subspace_core_backward(grad_C, P_out, Q_out, P_in, Q_in, s, d, K_out, K_in, sizes);
  const int64_t r = P_out.size(1), count = static_cast<int64_t>(sizes.size()), square = 4 * r * r;
  const std::vector<int64_t> start = cpu::starts(sizes), entry = square_starts(sizes);
  Tensor dP_out = at::empty_like(P_out), dQ_out = at::empty_like(Q_out), dP_in = at::empty_like(P_in);
  Tensor dQ_in = at::empty_like(Q_in), dd = at::empty_like(d);
  AT_DISPATCH_FLOATING_TYPES(s.scalar_type(), "subspace_core_backward", [&] {
    const auto data = [](const Tensor& tensor) { return tensor.const_data_ptr<scalar_t>(); };
    const auto result = [](Tensor& tensor) { return tensor.mutable_data_ptr<scalar_t>(); };
    const scalar_t *p_out = data(P_out), *q_out = data(Q_out), *p_in = data(P_in), *q_in = data(Q_in);
    const scalar_t *values = data(s), *change = data(d), *k_out = data(K_out), *k_in = data(K_in), *g = data(grad_C);
    scalar_t *dp_out = result(dP_out), *dq_out = result(dQ_out), *dp_in = result(dP_in), *dq_in = result(dQ_in);
    scalar_t* dchange = result(dd);
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = start[i] * r;
        core_backward(
            g + entry[i], p_out + row, q_out + row, p_in + row, q_in + row, values + start[i], change + start[i],
            k_out + i * square, k_in + i * square, dp_out + row, dq_out + row, dp_in + row, dq_in + row,
            dchange + start[i], sizes[i], r);
      }
    });
  });
  return {dP_out, dQ_out, dP_in, dQ_in, dd};
}

}  // namespace lorsa

TORCH_LIBRARY_IMPL(lorsa, CPU, m) {
  m.impl("subspace_core", &lorsa::subspace_core);
  m.impl("subspace_core_backward", &lorsa::subspace_core_backward);
}
