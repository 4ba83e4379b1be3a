// Squared scores of singular components, summed over samples, on the CPU.
//
// A sample's M = left^T right (K, K) is never there as a whole: a strip of its rows and the same strip of its columns are
// two thin products, from which the scores of the strip's components follow. The eager reference holds K^2 numbers and
// several arrays of that size beside; this holds 2 kStrip K.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"
#include "small.h"

namespace lorsa {
namespace {

constexpr int64_t kStrip = 64;

template <typename T>
void add_values(const T* left, const T* right, int64_t tokens, int64_t K, T* out) {
  std::vector<T> M(K, T(0));
  for (int64_t t = 0; t < tokens; ++t) {
    const T *l = left + t * K, *r = right + t * K;
#pragma omp simd
    for (int64_t i = 0; i < K; ++i) M[i] += l[i] * r[i];
  }
  for (int64_t i = 0; i < K; ++i) out[i] += M[i] * M[i];
}

// Row i of M and of M^T, both (K,) -> the score of component i.
template <typename T>
T gain(const T* row, const T* column, const T* s, int64_t i, int64_t K, bool pairs) {
  const T value = row[i] * row[i], own = s[i];
  T sum = 0;
  if (pairs) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < K; ++j) {
      const T left = s[j] * row[j] - own * column[j], right = own * row[j] - s[j] * column[j];
      sum += left * left + right * right;
    }
    return value + sum;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < K; ++j) sum += row[j] * row[j] + column[j] * column[j];
  return value + own * own * (sum - 2 * value);
}

template <typename T>
void add_gains(const Tensor& left, const Tensor& right, const T* s, bool pairs, T* out) {
  const int64_t K = left.size(1);
  for (int64_t first = 0; first < K; first += kStrip) {
    const int64_t count = std::min(kStrip, K - first);
    const Tensor rows = at::mm(left.narrow(1, first, count).t(), right);
    const Tensor columns = at::mm(right.narrow(1, first, count).t(), left);
    const T *row = rows.const_data_ptr<T>(), *column = columns.const_data_ptr<T>();
    at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[first + i] += gain(row + i * K, column + i * K, s, first + i, K, pairs);
      }
    });
  }
}

}  // namespace

Tensor component_sensitivity(
    const Tensor& left, const Tensor& right, const Tensor& s, IntArrayRef rows, int64_t kind) {
  check_component_sensitivity(left, right, s, rows, kind);
  const int64_t K = left.size(1);
  Tensor result = at::zeros({K}, left.options());
  AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "component_sensitivity", [&] {
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    int64_t first = 0;
    for (int64_t count : rows) {
      if (kind == kValue) {
        add_values(
            left.const_data_ptr<scalar_t>() + first * K, right.const_data_ptr<scalar_t>() + first * K, count, K, out);
      } else if (count > 0) {
        add_gains(
            left.narrow(0, first, count), right.narrow(0, first, count), s.const_data_ptr<scalar_t>(), kind == kPair,
            out);
      }
      first += count;
    }
  });
  return result;
}

}  // namespace lorsa

TORCH_LIBRARY_IMPL(lorsa, CPU, m) {
  m.impl("component_sensitivity", &lorsa::component_sensitivity);
}
