// Thin row-major matrices on the CPU. The long side, a module's components or features, is contiguous: a matrix of 2r
// columns is kept transposed, as 2r rows, so that every inner loop vectorises.
#pragma once

#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace lorsa::cpu {

template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// y += alpha * x
template <typename T>
inline void axpy(T alpha, const T* x, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += alpha * x[i];
}

// out (rows, columns) += a (rows, inner) b (inner, columns), or a^T for `transposed_a` with a (inner, rows).
template <typename T>
inline void add_product(
    const T* a, const T* b, T* out, int64_t rows, int64_t inner, int64_t columns, bool transposed_a = false) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t l = 0; l < inner; ++l) {
      axpy(transposed_a ? a[l * rows + i] : a[i * inner + l], b + l * columns, out + i * columns, columns);
    }
  }
}

// out (rows, columns) += a (rows, inner) b^T, b (columns, inner).
template <typename T>
inline void add_product_bt(const T* a, const T* b, T* out, int64_t rows, int64_t inner, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) out[i * columns + j] += dot(a + i * inner, b + j * inner, inner);
  }
}

// out (width, width) = (I - M / 2)^-1, by Gauss-Jordan elimination with partial pivoting. M is overwritten.
// I - M / 2 is never singular in exact arithmetic (see kernels/reference.py); NaN goes in, NaN comes out.
template <typename T>
inline void cayley_inverse(T* M, T* out, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      M[i * width + j] = (i == j ? T(1) : T(0)) - M[i * width + j] / 2;
      out[i * width + j] = i == j ? T(1) : T(0);
    }
  }
  for (int64_t column = 0; column < width; ++column) {
    int64_t pivot = column;
    for (int64_t i = column + 1; i < width; ++i) {
      if (std::abs(M[i * width + column]) > std::abs(M[pivot * width + column])) pivot = i;
    }
    if (pivot != column) {
      for (int64_t j = 0; j < width; ++j) {
        std::swap(M[pivot * width + j], M[column * width + j]);
        std::swap(out[pivot * width + j], out[column * width + j]);
      }
    }
    const T scale = T(1) / M[column * width + column];
    for (int64_t j = 0; j < width; ++j) {
      M[column * width + j] *= scale;
      out[column * width + j] *= scale;
    }
    for (int64_t i = 0; i < width; ++i) {
      const T factor = M[i * width + column];
      if (i == column || factor == T(0)) continue;
      axpy(-factor, M + column * width, M + i * width, width);
      axpy(-factor, out + column * width, out + i * width, width);
    }
  }
}

// dM (width, width) = K^T dK K^T / 2, the gradient through K = (I - M / 2)^-1.
template <typename T>
inline std::vector<T> through_inverse(const T* grad_K, const T* K, int64_t width) {
  std::vector<T> product(width * width, T(0)), grad_M(width * width, T(0));
  add_product_bt(grad_K, K, product.data(), width, width, width);
  add_product(K, product.data(), grad_M.data(), width, width, width, /*transposed_a=*/true);
  for (T& value : grad_M) value /= 2;
  return grad_M;
}

// Where each matrix of a packed tensor starts, and the end of the last.
template <typename Sizes>
inline std::vector<int64_t> starts(const Sizes& sizes) {
  std::vector<int64_t> result{0};
  for (int64_t size : sizes) result.push_back(result.back() + size);
  return result;
}

}  // namespace lorsa::cpu
