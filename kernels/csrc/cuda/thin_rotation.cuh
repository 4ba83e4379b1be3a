// Rows of x in blocks: read once into shared memory, projected to 2r numbers a row, and written once.
//
// As on the CPU, with B = [P, Q] and Z made of K (small_matrix.cuh; its transpose for the inverse),
//     u = (x - offset) B,  c = u Z^T,  y = x + c B^T,
// and backwards, from w = grad B:  du = w Z,  dx = grad + du B^T,  dB = grad^T c + (x - offset)^T du,  dZ = w^T u.
#pragma once

#include "small_matrix.cuh"

namespace lorsa::cuda {

// B^T (2r, n) for aligned loads of four: its rows lie `stride` apart.
template <typename A>
struct Transposed {
  const A *P, *Q;
  int64_t stride;
  int r;

  __device__ Four<A> four(int j, int c) const {
    const A* row = j < r ? P + j * stride : Q + (j - r) * stride;
    return *reinterpret_cast<const Four<A>*>(row + c);
  }
  __device__ A operator()(int j, int c) const { return j < r ? P[j * stride + c] : Q[(j - r) * stride + c]; }
};

// Z, or its transpose for the inverse rotation.
template <typename A>
struct Turn {
  Core<A> core;
  bool inverse;

  __device__ A operator()(int i, int j) const { return inverse ? core(j, i) : core(i, j); }
};

// At most this many threads share a block of rows; each has every threads-th four of columns, of all rows, throughout,
// so that nobody waits for what he reads.
constexpr int kRowThreads = 256;

// How a kernel over rows is launched.
struct Shape {
  int rows;      // of a block
  int threads;   // of a block
  bool staged;   // whether the rows fit into shared memory; else they are read twice
  bool vectorised;
  size_t shared;
};

template <typename T>
struct Matrix {
  const T* at;  // (tokens, n)
  int64_t tokens;
  int n;
  bool staged, vectorised;
};

// kRows rows of a matrix, from row `first` on. Rows past the last are zero.
template <typename T, int kRows>
struct Block {
  const T* at;
  T* tile;  // (kRows, padded) in shared memory
  int rows, n, padded;
  bool staged, vectorised;

  __device__ Block(const Matrix<T>& matrix, int64_t first, T* tile)
      : at(matrix.at + first * matrix.n),
        tile(tile),
        rows(matrix.tokens - first < kRows ? static_cast<int>(matrix.tokens - first) : kRows),
        n(matrix.n),
        padded(static_cast<int>(round_up(matrix.n, 4))),
        staged(matrix.staged),
        vectorised(matrix.vectorised) {}

  __device__ Four<T> from_memory(int row, int c) const {
    if (row < rows) return load_four(at + int64_t{row} * n, c, n, vectorised);
    return {{narrow<T>(0), narrow<T>(0), narrow<T>(0), narrow<T>(0)}};
  }

  __device__ void stage() const {
    if (!staged) return;
    for (int c = 4 * threadIdx.x; c < n; c += 4 * blockDim.x) {
      Four<T> fours[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) fours[row] = from_memory(row, c);
#pragma unroll
      for (int row = 0; row < kRows; ++row) *reinterpret_cast<Four<T>*>(tile + row * padded + c) = fours[row];
    }
  }

  __device__ Four<T> four(int row, int c) const {
    return staged ? *reinterpret_cast<const Four<T>*>(tile + row * padded + c) : from_memory(row, c);
  }
};

// Numbers of shared memory that block_project takes for a row.
inline int64_t project_numbers(int threads, int64_t width) { return threads / 32 * width; }

// result[j * kRows + row] = (row - offset) B for the block's rows; `offset` may be null. kDots columns of B at a time.
template <int kDots, typename T, int kRows, typename A>
__device__ void block_project(
    const Block<T, kRows>& block, const T* offset, const Transposed<A>& B, A* partial, A* result) {
  const int width = 2 * B.r, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int j0 = 0; j0 < width; j0 += kDots) {
    A sums[kDots * kRows] = {};
    for (int c = 4 * threadIdx.x; c < block.n; c += 4 * blockDim.x) {
      Four<A> b[kDots];
#pragma unroll
      for (int j = 0; j < kDots; ++j) {
        if (j0 + j < width) {
          b[j] = B.four(j0 + j, c);
        } else {
          b[j] = {};
        }
      }
      A shift[4] = {};
      if (offset != nullptr) {
        const Four<T> four = load_four(offset, c, block.n, block.vectorised);
#pragma unroll
        for (int i = 0; i < 4; ++i) shift[i] = widen(four.at[i]);
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const Four<T> four = block.four(row, c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const A value = widen(four.at[i]) - shift[i];
#pragma unroll
          for (int j = 0; j < kDots; ++j) sums[j * kRows + row] += value * b[j].at[i];
        }
      }
    }
    const A sum = warp_sums(sums);
    constexpr int kLanes = 32 / (kDots * kRows);  // with the same sum
    const int place = j0 * kRows + lane / kLanes;
    if (lane % kLanes == 0 && place < width * kRows) partial[warp * width * kRows + place] = sum;
  }
  __syncthreads();
  for (int place = threadIdx.x; place < width * kRows; place += blockDim.x) {
    A sum = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) sum += partial[w * width * kRows + place];
    result[place] = sum;
  }
  __syncthreads();
}

// write(place of (row, j), row, j) for the block's rows and j < width; what is written can be read afterwards.
template <int kRows, typename Write>
__device__ void block_row_entries(int width, Write write) {
  for (int place = threadIdx.x; place < width * kRows; place += blockDim.x) write(place, place % kRows, place / kRows);
  __syncthreads();
}

// out = row + c B^T for the block's rows, rounded once. The change is summed up first: a row that does not turn comes
// out to the bit.
template <typename T, int kRows, typename A>
__device__ void block_write_turned(const Block<T, kRows>& block, const Transposed<A>& B, const A* c_of_rows, T* out) {
  for (int c = 4 * threadIdx.x; c < block.n; c += 4 * blockDim.x) {
    A change[kRows][4] = {};
#pragma unroll 4
    for (int j = 0; j < 2 * B.r; ++j) {
      const Four<A> b = B.four(j, c);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const A factor = c_of_rows[j * kRows + row];
#pragma unroll
        for (int i = 0; i < 4; ++i) change[row][i] += factor * b.at[i];
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= block.rows) break;
      Four<T> four = block.four(row, c);
#pragma unroll
      for (int i = 0; i < 4; ++i) four.at[i] = narrow<T>(widen(four.at[i]) + change[row][i]);
      store_four(out + int64_t{row} * block.n, c, block.n, block.vectorised, four);
    }
  }
}

// Numbers of scratch for B^T.
inline int64_t transposed_numbers(int64_t n, int64_t r) { return 2 * r * round_up(n, 4); }

// Makes B^T, (2r, padded), and in the last block `back` = I + Z B^T B, (2r, 2r), where that is not null.
template <typename A>
__global__ void __launch_bounds__(kThreads) prepare_kernel(Factors<A> B, Turn<A> Z, int n, A* transposed, A* back) {
  const int width = 2 * B.r, padded = static_cast<int>(round_up(n, 4));
  if (back == nullptr || blockIdx.x + 1 < gridDim.x) {
    const int c = blockIdx.x * kThreads + threadIdx.x;
    if (c >= padded) return;
    for (int j = 0; j < width; ++j) transposed[int64_t{j} * padded + c] = c < n ? B(c, j) : A(0);
    return;
  }
  A* shared = reinterpret_cast<A*>(shared_memory());
  const Small<A> gram{shared, width};
  block_gram<4>(
      B, B, n, width, gram.at + Small<A>::numbers(width), [&](int i, int j, A value) { gram(i, j) = value; });
  block_entries(width, [&](int i, int j) {
    back[i * width + j] =
        A(i == j) + dot<A>(width, [&](int l) { return Z(i, l); }, [&](int l) { return gram(l, j); });
  });
}

// B^T, in `scratch`; but for rank 1, P and Q are that as they are, unless they cannot be loaded in fours.
template <typename A>
cudaError_t prepare(const ThinRotation& op, A* scratch, A* back, cudaStream_t stream, Transposed<A>* result) {
  const A *P = static_cast<const A*>(op.P), *Q = static_cast<const A*>(op.Q);
  const int n = static_cast<int>(op.n), r = static_cast<int>(op.r);
  const int64_t padded = round_up(op.n, 4);
  const bool as_they_are = r == 1 && n % 4 == 0 && fits_fours<A>(P) && fits_fours<A>(Q);
  *result = as_they_are ? Transposed<A>{P, Q, padded, r} : Transposed<A>{scratch, scratch + r * padded, padded, r};
  const int64_t blocks = (as_they_are ? 0 : divide_up(padded, kThreads)) + (back != nullptr);
  if (blocks == 0) return cudaSuccess;
  const size_t shared = back == nullptr ? 0 : sizeof(A) * (Small<A>::numbers(2 * r) + kGramNumbers<4>);
  return launch(
      prepare_kernel<A>, dim3(blocks), kThreads, shared, stream, Factors<A>{P, Q, r},
      Turn<A>{{static_cast<const A*>(op.K), r}, op.inverse}, n, scratch, back);
}

// Calls f(zero of the data's type).
template <typename Function>
cudaError_t with_data_type(Type type, Function f) {
  switch (type) {
    case Type::kFloat32:
      return f(float());
    case Type::kFloat64:
      return f(double());
    case Type::kBFloat16:
      return f(__nv_bfloat16());
    case Type::kFloat16:
      return f(__half());
  }
  return cudaErrorInvalidValue;
}

// The most rows of a block: the more, the less often P and Q are read out of the L2 cache.
template <typename T>
constexpr int kMostRows = sizeof(T) == 2 ? 8 : sizeof(T) == 4 ? 4 : 2;

// The most rows for which two blocks fit on a multiprocessor, so that one reads while the other writes, and for which
// every multiprocessor has a block. `numbers_of_results`: of a row, in shared memory beside it.
template <typename T>
cudaError_t choose_shape(const ThinRotation& op, bool vectorised, int64_t numbers_of_results, Shape* shape) {
  int device = 0, multiprocessors = 0, shared_of_each = 0, most_of_block = 0;
  LORSA_RETURN_ERROR(cudaGetDevice(&device));
  LORSA_RETURN_ERROR(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  LORSA_RETURN_ERROR(cudaDeviceGetAttribute(&shared_of_each, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  LORSA_RETURN_ERROR(cudaDeviceGetAttribute(&most_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  constexpr int64_t kReserved = 1024;  // of each block, by the driver
  const int64_t fours = round_up(divide_up(op.n, 4), 32);
  shape->threads = static_cast<int>(fours < kRowThreads ? fours : kRowThreads);
  shape->vectorised = vectorised;
  const int64_t numbers = project_numbers(shape->threads, 2 * op.r) + numbers_of_results;
  const int64_t row_of_numbers = numbers * sizeof(typename Accumulator<T>::type);
  const int64_t row = round_up(op.n, 4) * sizeof(T) + row_of_numbers;
  for (int rows = kMostRows<T>;; rows /= 2) {
    shape->rows = rows;
    shape->shared = rows * row;
    shape->staged = rows * row <= (rows > 2 ? shared_of_each / 2 - kReserved : most_of_block);
    if (rows == 2 || (shape->staged && op.tokens >= int64_t{rows} * multiprocessors)) break;
  }
  if (!shape->staged) shape->shared = shape->rows * row_of_numbers;
  return cudaSuccess;
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls f with the rows of a block and the columns of B at a time as constants.
template <typename T, typename Function>
cudaError_t with_shape(const Shape& shape, int64_t r, Function f) {
  const auto with_rows = [&](auto rows) { return r == 1 ? f(rows, Constant<2>()) : f(rows, Constant<4>()); };
  if constexpr (kMostRows<T> >= 8) {
    if (shape.rows == 8) return with_rows(Constant<8>());
  }
  if constexpr (kMostRows<T> >= 4) {
    if (shape.rows == 4) return with_rows(Constant<4>());
  }
  return with_rows(Constant<2>());
}

}  // namespace lorsa::cuda
