// Gradients of thin_rotation from the forward's input or, since R is orthogonal, its output.
//
// Kernel 1 reads grad and what was kept, writes dx and 8r numbers a row (u, w, c, du): 3 T n numbers moved. Kernel 2
// reads grad and what was kept again for dB = grad^T c + (x - offset)^T du, 2 T n. In all 5 T n; eager moves 8 T n, and
// 3 T n more where x has to be recovered from y.
//
// Kernel 2 is not the library's matrix product (at::mm), which takes one dtype: c and du would have to be rounded to
// that of grad, and the sums with them; or grad and kept copied to float32, which beside bfloat16 moves 16 T n bytes
// more, where all of the above is 10 T n. It adds up in a fixed order, without atomics: equal inputs give equal bits.
#include "thin_rotation.cuh"

namespace lorsa::cuda {
namespace {

// Of each token: u, w, c and du, 2r numbers each.
template <typename A>
struct Inner {
  A* at;
  int64_t tokens;
  int width;

  __device__ A* u(int64_t token) const { return at + token * width; }
  __device__ A* w(int64_t token) const { return at + (tokens + token) * width; }
  __device__ A* c(int64_t token) const { return at + (2 * tokens + token) * width; }
  __device__ A* du(int64_t token) const { return at + (3 * tokens + token) * width; }
};

template <typename T, int kRows, int kDots, typename A>
__global__ void __launch_bounds__(kRowThreads) rows_kernel(
    Matrix<T> grad, Matrix<T> kept, const T* offset, Transposed<A> B, Turn<A> Z, const A* back, Inner<A> inner, T* dx) {
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int width = 2 * B.r, results = width * kRows;
  const Block<T, kRows> kept_rows(kept, first, reinterpret_cast<T*>(shared_memory()));
  A* v = reinterpret_cast<A*>(kept_rows.tile + (kept.staged ? kRows * kept_rows.padded : 0));
  A *u = v + results, *w = u + results, *du = w + results, *partial = du + results;

  kept_rows.stage();
  block_project<kDots>(kept_rows, offset, B, partial, v);
  // Where y was kept, (x - offset) B = (y - offset) B (I + Z B^T B).
  block_row_entries<kRows>(width, [&](int place, int row, int j) {
    u[place] = v[place];
    if (back == nullptr) return;
    u[place] = dot<A>(width, [&](int l) { return v[l * kRows + row]; }, [&](int l) { return back[l * width + j]; });
  });

  // In the place of what was kept, which every thread has done with.
  const Block<T, kRows> rows(grad, first, kept_rows.tile);
  rows.stage();
  block_project<kDots>(rows, static_cast<const T*>(nullptr), B, partial, w);
  block_row_entries<kRows>(width, [&](int place, int row, int j) {
    du[place] = dot<A>(width, [&](int l) { return w[l * kRows + row]; }, [&](int l) { return Z(l, j); });
    if (row >= rows.rows) return;
    inner.u(first + row)[j] = u[place];
    inner.w(first + row)[j] = w[place];
    inner.c(first + row)[j] =
        dot<A>(width, [&](int l) { return u[l * kRows + row]; }, [&](int l) { return Z(j, l); });
    inner.du(first + row)[j] = du[place];
  });
  block_write_turned(rows, B, du, dx + first * grad.n);
}

// Sums over the tokens of a slice: dB^T (2r, padded) by most blocks; dZ = w^T u, c^T du (2r, 2r) and sum du by one.
template <typename A>
struct Slices {
  A *dB, *small;
  int count, tokens, width, padded;

  __device__ A* dB_of(int slice, int j) const { return dB + (int64_t{slice} * width + j) * padded; }
  __device__ A* dZ_of(int slice) const { return small + int64_t{slice} * (2 * width + 1) * width; }
  __device__ A* cdu_of(int slice) const { return dZ_of(slice) + width * width; }
  __device__ A* du_of(int slice) const { return dZ_of(slice) + 2 * width * width; }
};

constexpr int kColumnThreads = 64;                        // each with four columns of a block
constexpr int kColumns = 4 * kColumnThreads;
constexpr int kTokenLanes = kThreads / kColumnThreads;     // threads of a column, each with every fourth token
constexpr int kTokens = 64;                                // whose c and du are in shared memory at a time

template <typename T, int kDots, typename A>
__global__ void __launch_bounds__(kThreads) sums_kernel(
    Matrix<T> grad, Matrix<T> kept, const T* offset, Inner<A> inner, Slices<A> slices) {
  A* shared = reinterpret_cast<A*>(shared_memory());
  const int width = inner.width, slice = blockIdx.y;
  const int64_t first = int64_t{slice} * slices.tokens;
  const int64_t end = first + slices.tokens < inner.tokens ? first + slices.tokens : inner.tokens;

  if (blockIdx.x + 1 == gridDim.x) {
    if (blockIdx.z > 0) return;
    const int64_t tokens = end - first;
    A *dZ = slices.dZ_of(slice), *cdu = slices.cdu_of(slice);
    const auto u = [&](int64_t token, int j) { return inner.u(first + token)[j]; };
    const auto w = [&](int64_t token, int j) { return inner.w(first + token)[j]; };
    const auto c = [&](int64_t token, int j) { return inner.c(first + token)[j]; };
    const auto du = [&](int64_t token, int j) { return inner.du(first + token)[j]; };
    block_gram<4>(w, u, tokens, width, shared, [&](int i, int j, A value) { dZ[i * width + j] = value; });
    block_gram<4>(c, du, tokens, width, shared, [&](int i, int j, A value) { cdu[i * width + j] = value; });
    if (static_cast<int>(threadIdx.x) < width) {
      A sum = 0;
      for (int64_t token = 0; token < tokens; ++token) sum += du(token, threadIdx.x);
      slices.du_of(slice)[threadIdx.x] = sum;
    }
    return;
  }

  const int own = 4 * (threadIdx.x % kColumnThreads), lane = threadIdx.x / kColumnThreads;
  const int column = blockIdx.x * kColumns + own, j0 = blockIdx.z * kDots;
  const bool used = column < grad.n;
  A shift[4] = {};
  if (offset != nullptr && used) {
    const Four<T> four = load_four(offset, column, grad.n, grad.vectorised);
#pragma unroll
    for (int i = 0; i < 4; ++i) shift[i] = widen(four.at[i]);
  }
  A *c = shared, *du = c + kTokens * kDots;  // (kTokens, kDots)
  A sums[kDots][4] = {};
  for (int64_t chunk = first; chunk < end; chunk += kTokens) {
    const int count = end - chunk < kTokens ? static_cast<int>(end - chunk) : kTokens;
    __syncthreads();
    for (int e = threadIdx.x; e < count * kDots; e += kThreads) {
      const int64_t token = chunk + e / kDots;
      const int j = j0 + e % kDots;
      c[e] = j < width ? inner.c(token)[j] : A(0);
      du[e] = j < width ? inner.du(token)[j] : A(0);
    }
    __syncthreads();
    if (!used) continue;
#pragma unroll 4
    for (int token = lane; token < count; token += kTokenLanes) {
      const int64_t row = (chunk + token) * grad.n;
      const Four<T> g = load_four(grad.at + row, column, grad.n, grad.vectorised);
      const Four<T> x = load_four(kept.at + row, column, grad.n, grad.vectorised);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const A of_grad = widen(g.at[i]), of_kept = widen(x.at[i]) - shift[i];
#pragma unroll
        for (int j = 0; j < kDots; ++j) {
          sums[j][i] += of_grad * c[token * kDots + j] + of_kept * du[token * kDots + j];
        }
      }
    }
  }
  // The lanes take turns, in order.
  for (int turn = 0; turn < kTokenLanes; ++turn) {
    __syncthreads();
    if (lane != turn) continue;
#pragma unroll
    for (int j = 0; j < kDots; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        A& place = shared[j * kColumns + own + i];
        place = turn == 0 ? sums[j][i] : place + sums[j][i];
      }
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < kDots * kColumns; e += kThreads) {
    const int j = j0 + e / kColumns;
    const int c_of_slice = blockIdx.x * kColumns + e % kColumns;
    if (j < width && c_of_slice < grad.n) slices.dB_of(slice, j)[c_of_slice] = shared[e];
  }
}

template <typename A>
struct Gradients {
  A *P, *Q, *K, *offset;
};

// Adds the slices up; block (x, j) has kThreads entries of dB's column j. The blocks of j = 0 also write
// doffset = - B sum du, and the first of them dK.
template <typename A>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    Slices<A> slices, Transposed<A> B, int n, bool inverse, bool kept_output, Gradients<A> out) {
  const int r = B.r, width = 2 * r, j = blockIdx.y;
  const int column = blockIdx.x * kThreads + threadIdx.x;
  A* cdu = reinterpret_cast<A*>(shared_memory());  // (2r,), column j of c^T du
  A* du = cdu + width;                             // (2r,)
  for (int l = threadIdx.x; l < width; l += kThreads) {
    A of_cdu = 0, of_du = 0;
    for (int slice = 0; slice < slices.count; ++slice) {
      of_cdu += slices.cdu_of(slice)[l * width + j];
      of_du += slices.du_of(slice)[l];
    }
    cdu[l] = of_cdu;
    du[l] = of_du;
  }
  __syncthreads();
  if (column < n) {
    A sum = 0;
#pragma unroll 4
    for (int slice = 0; slice < slices.count; ++slice) sum += slices.dB_of(slice, j)[column];
    // What the sums took for x is y: x - offset = y - offset - c B^T.
    if (kept_output) sum -= dot<A>(width, [&](int l) { return B(l, column); }, [&](int l) { return cdu[l]; });
    (j < r ? out.P : out.Q)[int64_t{column} * r + j % r] = sum;
    if (j == 0 && out.offset != nullptr) {
      out.offset[column] = -dot<A>(width, [&](int l) { return B(l, column); }, [&](int l) { return du[l]; });
    }
  }
  if (blockIdx.x > 0 || j > 0) return;
  for (int e = threadIdx.x; e < width * width; e += kThreads) {
    const int i = e / width, l = swapped(e % width, r);
    const int place = inverse ? l * width + i : i * width + l;
    A sum = 0;
    for (int slice = 0; slice < slices.count; ++slice) sum += slices.dZ_of(slice)[place];
    out.K[e] = i < r ? sum : -sum;
  }
}

// Slices of the tokens: enough for blocks everywhere; but a slice has 16 tokens or more, and what the slices write, and
// the last kernel reads, stays below a quarter of what they read.
int64_t slice_count(const ThinRotation& op) {
  constexpr int64_t kBlocks = 512;
  int64_t count = divide_up(kBlocks, divide_up(op.n, kColumns));
  const int64_t most = op.tokens / (8 * op.r), most_of_16 = divide_up(op.tokens, 16);
  count = count < most ? count : most;
  count = count < most_of_16 ? count : most_of_16;
  return count > 1 ? count : 1;
}

// The parts of the scratch, each a multiple of four numbers.
struct Parts {
  int64_t transposed, back, inner, dB, small;

  explicit Parts(const ThinRotation& op)
      : transposed(transposed_numbers(op.n, op.r)),
        back(4 * op.r * op.r),
        inner(8 * op.r * op.tokens),
        dB(slice_count(op) * 2 * op.r * round_up(op.n, 4)),
        small(slice_count(op) * 2 * op.r * (4 * op.r + 1)) {}
};

}  // namespace

int64_t thin_rotation_backward_scratch(const ThinRotation& op) {
  const Parts parts(op);
  return parts.transposed + parts.back + parts.inner + parts.dB + parts.small;
}

cudaError_t launch_thin_rotation_backward(
    const ThinRotation& op, const void* grad, const void* kept, bool kept_output, void* dx, void* dP, void* dQ,
    void* dK, void* doffset, void* scratch, cudaStream_t stream) {
  return with_data_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulator<T>::type;
    const Parts parts(op);
    const int n = static_cast<int>(op.n), r = static_cast<int>(op.r), width = 2 * r;
    A* transposed = static_cast<A*>(scratch);
    A* back = kept_output ? transposed + parts.transposed : nullptr;
    const Inner<A> inner{transposed + parts.transposed + parts.back, op.tokens, width};
    const int64_t count = slice_count(op);
    const Slices<A> slices{
        inner.at + parts.inner, inner.at + parts.inner + parts.dB, static_cast<int>(count),
        static_cast<int>(divide_up(op.tokens, count)), width, static_cast<int>(round_up(op.n, 4))};
    Transposed<A> B;
    LORSA_RETURN_ERROR(prepare<A>(op, transposed, back, stream, &B));

    Shape shape;
    const T* offset = static_cast<const T*>(op.offset);
    const bool vectorised = op.n % 4 == 0 && fits_fours<T>(grad) && fits_fours<T>(kept) && fits_fours<T>(dx) &&
                            fits_fours<T>(offset);
    LORSA_RETURN_ERROR(choose_shape<T>(op, vectorised, 8 * op.r, &shape));
    const Matrix<T> grads{static_cast<const T*>(grad), op.tokens, n, shape.staged, vectorised};
    const Matrix<T> kept_rows{static_cast<const T*>(kept), op.tokens, n, shape.staged, vectorised};
    const Turn<A> Z{{static_cast<const A*>(op.K), r}, op.inverse};
    LORSA_RETURN_ERROR(with_shape<T>(shape, op.r, [&](auto rows, auto dots) {
      constexpr int kRows = decltype(rows)::value, kDots = decltype(dots)::value;
      return launch(
          rows_kernel<T, kRows, kDots, A>, dim3(divide_up(op.tokens, kRows)), shape.threads, shape.shared, stream,
          grads, kept_rows, offset, B, Z, static_cast<const A*>(back), inner, static_cast<T*>(dx));
    }));

    const auto sums = [&](auto dots) {
      constexpr int kDots = decltype(dots)::value;
      static_assert(kDots * (2 * kTokens) <= kGramNumbers<4> && kDots * kColumns <= kGramNumbers<4>);
      return launch(
          sums_kernel<T, kDots, A>, dim3(divide_up(op.n, kColumns) + 1, count, divide_up(width, kDots)), kThreads,
          sizeof(A) * kGramNumbers<4>, stream, grads, kept_rows, offset, inner, slices);
    };
    LORSA_RETURN_ERROR(r == 1 ? sums(Constant<2>()) : sums(Constant<8>()));

    const Gradients<A> out{
        static_cast<A*>(dP), static_cast<A*>(dQ), static_cast<A*>(dK), static_cast<A*>(offset ? doffset : nullptr)};
    return launch(
        finish_kernel<A>, dim3(divide_up(op.n, kThreads), width), kThreads, sizeof(A) * 2 * width, stream, slices, B, n,
        op.inverse, kept_output, out);
  });
}

}  // namespace lorsa::cuda
