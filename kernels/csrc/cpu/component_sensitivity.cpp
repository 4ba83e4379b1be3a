// Squared scores of singular components, summed over samples, on the CPU.
//
// A sample's M = left^T right (K, K) is never there as a whole: from a strip of its rows, and for pairs the same strip of
// its columns, the scores of the strip's components follow. The eager reference holds K^2 numbers and several arrays of
// that size beside; this holds kStrip K, or twice that.
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

// out_i += M_ii^2 + s_i^2 (sum_j M_ij^2 + sum_j M_ji^2 - 2 M_ii^2), from the rows alone.
template <typename T>
void add_own_gains(const Tensor& left, const Tensor& right, const T* s, T* out) {
  const int64_t K = left.size(1);
  std::vector<T> column_sums(K, T(0)), rest(K);
  for (int64_t first = 0; first < K; first += kStrip) {
    const int64_t count = std::min(kStrip, K - first);
    const Tensor rows = at::mm(left.narrow(1, first, count).t(), right);
    const T* row = rows.const_data_ptr<T>();
    for (int64_t i = 0; i < count; ++i, row += K) {
      T sum = 0, *sums = column_sums.data();
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < K; ++j) {
        const T square = row[j] * row[j];
        sum += square;
        sums[j] += square;
      }
      const T value = row[first + i] * row[first + i];
      out[first + i] += value;
      rest[first + i] = sum - 2 * value;
    }
  }
  for (int64_t i = 0; i < K; ++i) out[i] += s[i] * s[i] * (rest[i] + column_sums[i]);
}

// out_i += M_ii^2 + sum_j (s_j M_ij - s_i M_ji)^2 + (s_i M_ij - s_j M_ji)^2.
template <typename T>
void add_pair_gains(const Tensor& left, const Tensor& right, const T* s, T* out) {
  const int64_t K = left.size(1);
  for (int64_t first = 0; first < K; first += kStrip) {
    const int64_t count = std::min(kStrip, K - first);
    const Tensor rows = at::mm(left.narrow(1, first, count).t(), right);
    const Tensor columns = at::mm(right.narrow(1, first, count).t(), left);
    at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *row = rows.const_data_ptr<T>() + i * K, *column = columns.const_data_ptr<T>() + i * K;
        const T own = s[first + i];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < K; ++j) {
          const T near = s[j] * row[j] - own * column[j], far = own * row[j] - s[j] * column[j];
          sum += near * near + far * far;
        }
        out[first + i] += row[first + i] * row[first + i] + sum;
      }
    });
  }
}

}  // namespace

Tensor component_sensitivity(
    const Tensor& left, const Tensor& right, const Tensor& s, IntArrayRef rows, int64_t kind) {
  check_component_sensitivity(left, right, s, rows, kind);
  const WithoutAutocast guard;
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
        const auto add = kind == kOwn ? add_own_gains<scalar_t> : add_pair_gains<scalar_t>;
        add(left.narrow(0, first, count), right.narrow(0, first, count), s.const_data_ptr<scalar_t>(), out);
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
