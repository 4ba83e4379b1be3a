// x -> R x for every row of x, on the CPU, in one pass: each row is read into the cache once and written once, 2 n numbers
// of memory traffic where the eager reference's three products and the sum move some 6 n.
//
// With B = [P, Q] the rotation is R = I + B Z B^T, Z a (2r, 2r) matrix made of K, so that
//     u = (x - offset) B,  c = u Z^T,  y = x + c B^T,
// and backwards, from w = grad B:  du = w Z,  dx = grad + du B^T,  dB = grad^T c + (x - offset)^T du,  dZ = w^T u.
// R is orthogonal: where y was kept in place of x, x - offset = yo + yo B Z B^T with yo = y - offset, and neither x nor
// a second pass is needed for dB: (x - offset)^T du = yo^T du - B (c^T du).
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"
#include "small.h"

namespace lorsa {
namespace {

// Rows that share one reading of B.
constexpr int64_t kRows = 4;

template <typename T>
using Vector = std::vector<T>;

// B^T (2r, n), Z (2r, 2r) and what they need to know, in the dtype that is accumulated in.
template <typename T>
struct Rotation {
  Rotation(const Tensor& P, const Tensor& Q, const Tensor& K, bool inverse)
      : n(P.size(0)), r(P.size(1)), width(2 * r), B(width * n), Z(width * width) {
    const T *p = P.const_data_ptr<T>(), *q = Q.const_data_ptr<T>(), *k = K.const_data_ptr<T>();
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < r; ++j) {
        B[j * n + i] = p[i * r + j];
        B[(r + j) * n + i] = q[i * r + j];
      }
    }
    // X = [P, -Q] = B diag(I, -I) and Y = [Q, P] = B swapped, so X K Y^T = B Z B^T with:
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        (inverse ? Z[swapped(j) * width + i] : Z[i * width + swapped(j)]) = sign(i) * k[i * width + j];
      }
    }
  }

  int64_t swapped(int64_t j) const { return j < r ? j + r : j - r; }
  T sign(int64_t i) const { return i < r ? T(1) : T(-1); }

  // dK from dZ, the way Z came from K.
  void core_gradient(const Vector<T>& dZ, bool inverse, T* dK) const {
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        dK[i * width + j] = sign(i) * (inverse ? dZ[swapped(j) * width + i] : dZ[i * width + swapped(j)]);
      }
    }
  }

  // B^T offset (2r), zero without one.
  template <typename Data>
  Vector<T> projected(const OptionalTensor& offset) const {
    Vector<T> result(width, T(0));
    if (!offset.has_value()) return result;
    const Data* values = offset->const_data_ptr<Data>();
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t i = 0; i < n; ++i) result[j] += B[j * n + i] * static_cast<T>(values[i]);
    }
    return result;
  }

  // out (count, 2r) = rows B - shift, for `count` rows of n.
  void project(const T* const* rows, int64_t count, const Vector<T>& shift, T* out) const {
    for (int64_t j = 0; j < width; ++j) {
      const T* b = B.data() + j * n;
      if (count == kRows) {
        const T *x0 = rows[0], *x1 = rows[1], *x2 = rows[2], *x3 = rows[3];
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t i = 0; i < n; ++i) {
          s0 += x0[i] * b[i];
          s1 += x1[i] * b[i];
          s2 += x2[i] * b[i];
          s3 += x3[i] * b[i];
        }
        out[j] = s0 - shift[j];
        out[width + j] = s1 - shift[j];
        out[2 * width + j] = s2 - shift[j];
        out[3 * width + j] = s3 - shift[j];
      } else {
        for (int64_t t = 0; t < count; ++t) out[t * width + j] = cpu::dot(rows[t], b, n) - shift[j];
      }
    }
  }

  int64_t n, r, width;
  Vector<T> B, Z;
};

// A row in the dtype that is accumulated in: the data itself where that is its dtype, a copy in `buffer` otherwise.
template <typename T, typename Data>
const T* widened(const Data* row, T* buffer, int64_t n) {
  if constexpr (std::is_same_v<T, Data>) {
    return row;
  } else {
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<T>(row[i]);
    return buffer;
  }
}

// out = row + c B^T for one row, rounded once.
template <typename T, typename Data>
void write_turned(const Rotation<T>& rotation, const T* row, const T* c, T* buffer, Data* out) {
  const int64_t n = rotation.n;
  T* sum = buffer;
  if constexpr (std::is_same_v<T, Data>) sum = out;
  const T* b = rotation.B.data();
  if (rotation.width == 2) {
    const T c0 = c[0], c1 = c[1];
    const T* b1 = b + n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] = row[i] + (c0 * b[i] + c1 * b1[i]);
  } else {
    // The change is summed up first, so that a row that does not turn comes out to the bit.
    Vector<T> change(n, T(0));
    for (int64_t j = 0; j < rotation.width; ++j) cpu::axpy(c[j], b + j * n, change.data(), n);
    for (int64_t i = 0; i < n; ++i) sum[i] = row[i] + change[i];
  }
  if constexpr (!std::is_same_v<T, Data>) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Data>(sum[i]);
  }
}

template <typename T, typename Data>
void turn(const Tensor& x, const Rotation<T>& rotation, const OptionalTensor& offset, Tensor& y) {
  const int64_t n = rotation.n, width = rotation.width, tokens = x.size(0);
  const Vector<T> shift = rotation.template projected<Data>(offset);
  const Data* in = x.const_data_ptr<Data>();
  Data* out = y.mutable_data_ptr<Data>();
  at::parallel_for(0, (tokens + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    Vector<T> buffer(kRows * n), scratch(n), u(kRows * width), c(kRows * width);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kRows, count = std::min(kRows, tokens - first);
      const T* rows[kRows];
      for (int64_t t = 0; t < count; ++t) rows[t] = widened(in + (first + t) * n, buffer.data() + t * n, n);
      rotation.project(rows, count, shift, u.data());
      std::fill(c.begin(), c.end(), T(0));
      cpu::add_product_bt(u.data(), rotation.Z.data(), c.data(), count, width, width);
      for (int64_t t = 0; t < count; ++t) {
        write_turned(rotation, rows[t], c.data() + t * width, scratch.data(), out + (first + t) * n);
      }
    }
  });
}

// What one thread adds up over its rows.
template <typename T>
struct Sums {
  Sums(int64_t n, int64_t width) : B(width * n, T(0)), Z(width * width, T(0)), cdu(width * width, T(0)), du(width, T(0)) {}

  void operator+=(const Sums& other) {
    const auto add = [](Vector<T>& mine, const Vector<T>& theirs) {
      cpu::axpy(T(1), theirs.data(), mine.data(), static_cast<int64_t>(mine.size()));
    };
    add(B, other.B);
    add(Z, other.Z);
    add(cdu, other.cdu);
    add(du, other.du);
  }

  Vector<T> B, Z, cdu, du;  // dB^T (2r, n), dZ, sum of c^T du, sum of du
};

// dB^T += c^T grad + du^T kept for `count` rows.
template <typename T>
void add_outer(
    const T* const* grads, const T* const* kept, const T* c, const T* du, int64_t count, int64_t n, int64_t width,
    T* out) {
  for (int64_t j = 0; j < width; ++j) {
    T* row = out + j * n;
    if (count == kRows) {
      const T *g0 = grads[0], *g1 = grads[1], *g2 = grads[2], *g3 = grads[3];
      const T *x0 = kept[0], *x1 = kept[1], *x2 = kept[2], *x3 = kept[3];
      const T c0 = c[j], c1 = c[width + j], c2 = c[2 * width + j], c3 = c[3 * width + j];
      const T d0 = du[j], d1 = du[width + j], d2 = du[2 * width + j], d3 = du[3 * width + j];
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        row[i] += (c0 * g0[i] + c1 * g1[i] + c2 * g2[i] + c3 * g3[i]) + (d0 * x0[i] + d1 * x1[i] + d2 * x2[i] + d3 * x3[i]);
      }
    } else {
      for (int64_t t = 0; t < count; ++t) {
        cpu::axpy(c[t * width + j], grads[t], row, n);
        cpu::axpy(du[t * width + j], kept[t], row, n);
      }
    }
  }
}

template <typename T, typename Data>
Sums<T> turn_backward(
    const Tensor& grad, const Tensor& kept, const Rotation<T>& rotation, const OptionalTensor& offset, bool kept_output,
    Tensor& dx) {
  const int64_t n = rotation.n, width = rotation.width, tokens = grad.size(0);
  const Vector<T> shift = rotation.template projected<Data>(offset), nothing(width, T(0));
  // (I + Z B^T B), which takes yo B to (x - offset) B.
  Vector<T> back(width * width, T(0));
  if (kept_output) {
    Vector<T> gram(width * width, T(0));
    cpu::add_product_bt(rotation.B.data(), rotation.B.data(), gram.data(), width, n, width);
    cpu::add_product(rotation.Z.data(), gram.data(), back.data(), width, width, width);
  }
  for (int64_t i = 0; i < width; ++i) back[i * width + i] += T(1);

  const Data *g = grad.const_data_ptr<Data>(), *k = kept.const_data_ptr<Data>();
  Data* out = dx.mutable_data_ptr<Data>();
  const int64_t blocks = (tokens + kRows - 1) / kRows;
  // One set of sums a chunk: for one number of threads the same bits come out whichever thread takes which chunk.
  const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(blocks, at::get_num_threads()));
  std::vector<Sums<T>> sums(chunks, Sums<T>(n, width));
  at::parallel_for(0, chunks, 1, [&](int64_t first_chunk, int64_t last_chunk) {
    Vector<T> buffer(2 * kRows * n), scratch(n), v(kRows * width), u(v), c(v), w(v), du(v);
    for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
      Sums<T>& sum = sums[chunk];
      for (int64_t block = blocks * chunk / chunks; block < blocks * (chunk + 1) / chunks; ++block) {
        const int64_t first = block * kRows, count = std::min(kRows, tokens - first);
        const T *grads[kRows], *rows[kRows];
        for (int64_t t = 0; t < count; ++t) {
          grads[t] = widened(g + (first + t) * n, buffer.data() + t * n, n);
          rows[t] = widened(k + (first + t) * n, buffer.data() + (kRows + t) * n, n);
        }
        rotation.project(grads, count, nothing, w.data());
        rotation.project(rows, count, shift, v.data());
        std::fill(u.begin(), u.end(), T(0));
        std::fill(c.begin(), c.end(), T(0));
        std::fill(du.begin(), du.end(), T(0));
        cpu::add_product(v.data(), back.data(), u.data(), count, width, width);
        cpu::add_product_bt(u.data(), rotation.Z.data(), c.data(), count, width, width);
        cpu::add_product(w.data(), rotation.Z.data(), du.data(), count, width, width);
        cpu::add_product(w.data(), u.data(), sum.Z.data(), width, count, width, /*transposed_a=*/true);
        cpu::add_product(c.data(), du.data(), sum.cdu.data(), width, count, width, /*transposed_a=*/true);
        for (int64_t t = 0; t < count; ++t) cpu::axpy(T(1), du.data() + t * width, sum.du.data(), width);
        add_outer(grads, rows, c.data(), du.data(), count, n, width, sum.B.data());
        for (int64_t t = 0; t < count; ++t) {
          write_turned(rotation, grads[t], du.data() + t * width, scratch.data(), out + (first + t) * n);
        }
      }
    }
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) sums[0] += sums[chunk];
  return std::move(sums[0]);
}

template <typename T, typename Data>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& kept, const Tensor& P, const Tensor& Q, const Tensor& K,
    const OptionalTensor& offset, bool inverse, bool kept_output) {
  const Rotation<T> rotation(P, Q, K, inverse);
  const int64_t n = rotation.n, r = rotation.r, width = rotation.width;
  Tensor dx = at::empty_like(grad), dP = at::empty_like(P), dQ = at::empty_like(Q), dK = at::empty_like(K);
  Tensor doffset = offset.has_value() ? at::zeros({n}, P.options()) : at::empty({0}, P.options());
  Sums<T> sums = turn_backward<T, Data>(grad, kept, rotation, offset, kept_output, dx);
  if (kept_output) {
    // What the sums take for x is y: dB -= B (c^T du).
    for (T& value : sums.cdu) value = -value;
    cpu::add_product(sums.cdu.data(), rotation.B.data(), sums.B.data(), width, width, n, /*transposed_a=*/true);
  }
  if (offset.has_value()) {
    const Data* values = offset->const_data_ptr<Data>();
    T* result = doffset.mutable_data_ptr<T>();
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t i = 0; i < n; ++i) sums.B[j * n + i] -= sums.du[j] * static_cast<T>(values[i]);
      cpu::axpy(-sums.du[j], rotation.B.data() + j * n, result, n);
    }
  }
  T *dp = dP.mutable_data_ptr<T>(), *dq = dQ.mutable_data_ptr<T>();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < r; ++j) {
      dp[i * r + j] = sums.B[j * n + i];
      dq[i * r + j] = sums.B[(r + j) * n + i];
    }
  }
  rotation.core_gradient(sums.Z, inverse, dK.mutable_data_ptr<T>());
  return {dx, dP, dQ, dK, doffset};
}

}  // namespace

Tensor thin_rotation(
    const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K, const OptionalTensor& offset, bool inverse,
    bool /*keep_output*/) {
  check_thin_rotation(x, P, Q, K, offset);
  Tensor y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "thin_rotation", [&] {
    using T = at::opmath_type<scalar_t>;
    turn<T, scalar_t>(x, Rotation<T>(P, Q, K, inverse), offset, y);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> thin_rotation_backward(
    const Tensor& grad, const Tensor& kept, const Tensor& P, const Tensor& Q, const Tensor& K,
    const OptionalTensor& offset, bool inverse, bool kept_output) {
  check_thin_rotation_backward(grad, kept, P, Q, K, offset);
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, grad.scalar_type(), "thin_rotation_backward", [&] {
    result = backward<at::opmath_type<scalar_t>, scalar_t>(grad, kept, P, Q, K, offset, inverse, kept_output);
  });
  return result;
}

}  // namespace lorsa

TORCH_LIBRARY_IMPL(lorsa, CPU, m) {
  m.impl("thin_rotation", &lorsa::thin_rotation);
  m.impl("thin_rotation_backward", &lorsa::thin_rotation_backward);
}
