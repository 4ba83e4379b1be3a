// The 2r x 2r algebra of rotations, by one block of kThreads in shared memory.
//
// With B = [P, Q] (n, 2r), of which X = [P, -Q] and Y = [Q, P] are B with signs and with its halves swapped,
//     R = I + X K Y^T = I + B Z B^T,   Z[i][swapped(j)] = sign(i) K[i][j],
//     M = Y^T X,   M[i][j] = sign(j) G[swapped(i)][j],   G = B^T B,
// so that the kernels work on B alone, and a gradient dB is [dP, dQ].
//
// Functions named block_... are entered by every thread of the block, and return when what they wrote can be read.
#pragma once

#include "device.cuh"

namespace lorsa::cuda {

constexpr int kThreads = 256;

__host__ __device__ inline int swapped(int j, int r) { return j < r ? j + r : j - r; }

// B = [P, Q] of one matrix.
template <typename A>
struct Factors {
  const A *P, *Q;
  int r;

  __device__ A operator()(int64_t row, int j) const { return j < r ? P[row * r + j] : Q[row * r + j - r]; }
};

// The core of one rotation in global memory, read as Z (see above).
template <typename A>
struct Core {
  const A* K;
  int r;

  __device__ A operator()(int i, int j) const {
    const A value = K[i * 2 * r + swapped(j, r)];
    return i < r ? value : -value;
  }
};

// A square matrix in shared memory. Its rows are padded by one, so that a column lies in different banks.
template <typename A>
struct Small {
  A* at;
  int width;

  __device__ A& operator()(int i, int j) const { return at[i * (width + 1) + j]; }
  __host__ __device__ static int64_t numbers(int64_t width) { return width * (width + 1); }
};

// Calls f(i, j) for all entries of a width x width matrix.
template <typename Function>
__device__ void block_entries(int width, Function f) {
  for (int entry = threadIdx.x; entry < width * width; entry += kThreads) f(entry / width, entry % width);
  __syncthreads();
}

template <typename A, typename Left, typename Right>
__device__ A dot(int width, Left left, Right right) {
  A sum = 0;
  for (int l = 0; l < width; ++l) sum += left(l) * right(l);
  return sum;
}

// Numbers of shared memory that block_gram takes. Tiles of 4 x 4 results suit any rank, of 2 x 2 rank 1 alone.
template <int kTile>
constexpr int kGramNumbers = kThreads * kTile * kTile;

// write(i, j, sum over rows of left(row, i) * right(row, j)) for i, j < width = 2r.
//
// A thread sums a tile of results over every groups-th row, straight from global memory, where neighbouring threads
// read neighbouring numbers; a tree over the groups follows. The order of the sums depends on nothing but the sizes.
template <int kTile, typename A, typename Left, typename Right, typename Write>
__device__ void block_gram(Left left, Right right, int64_t rows, int width, A* partial, Write write) {
  const int across = (width + kTile - 1) / kTile, tiles = across * across;
  int groups = 1;
  while (2 * groups * tiles <= kThreads) groups *= 2;
  const int tile = threadIdx.x % tiles, group = threadIdx.x / tiles;
  const int first_i = tile / across * kTile, first_j = tile % across * kTile;
  A sums[kTile][kTile] = {};
  if (group < groups) {
#pragma unroll 4
    for (int64_t row = group; row < rows; row += groups) {
      A l[kTile], r[kTile];
#pragma unroll
      for (int u = 0; u < kTile; ++u) {
        l[u] = first_i + u < width ? left(row, first_i + u) : A(0);
        r[u] = first_j + u < width ? right(row, first_j + u) : A(0);
      }
#pragma unroll
      for (int u = 0; u < kTile; ++u) {
#pragma unroll
        for (int v = 0; v < kTile; ++v) sums[u][v] += l[u] * r[v];
      }
    }
#pragma unroll
    for (int u = 0; u < kTile; ++u) {
#pragma unroll
      for (int v = 0; v < kTile; ++v) partial[(u * kTile + v) * kThreads + threadIdx.x] = sums[u][v];
    }
  }
  for (int half = groups / 2; half > 0; half /= 2) {
    __syncthreads();
    if (group < half) {
      for (int e = 0; e < kTile * kTile; ++e) {
        partial[e * kThreads + threadIdx.x] += partial[e * kThreads + threadIdx.x + half * tiles];
      }
    }
  }
  __syncthreads();
  block_entries(width, [&](int i, int j) {
    const int place = i % kTile * kTile + j % kTile;
    write(i, j, partial[place * kThreads + i / kTile * across + j / kTile]);
  });
}

// Numbers of shared memory that block_invert takes beside the matrix: a column, and the rows that were swapped.
inline int64_t invert_numbers(int64_t r) { return 4 * r; }

// Inverts a matrix where it lies, by Gauss-Jordan elimination with partial pivoting. NaN in, NaN out.
template <typename A>
__device__ void block_invert(Small<A> matrix, A* scratch) {
  const int width = matrix.width, thread = threadIdx.x;
  A* column = scratch;
  A* swaps = scratch + width;  // row numbers, exact in A
  for (int k = 0; k < width; ++k) {
    if (thread < 32) {
      A largest = -1;
      int where = k;
      for (int i = k + thread; i < width; i += 32) {
        const A size = fabs(matrix(i, k));
        if (size > largest) {
          largest = size;
          where = i;
        }
      }
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        const A size = __shfl_xor_sync(kWholeWarp, largest, offset);
        const int row = __shfl_xor_sync(kWholeWarp, where, offset);
        if (size > largest || (size == largest && row < where)) {
          largest = size;
          where = row;
        }
      }
      if (thread == 0) swaps[k] = A(where);
    }
    __syncthreads();
    // Swap rows k and p, scale the new row k, and set the pivot's column aside; its place takes the inverse's column.
    const int p = int(swaps[k]);
    A upper = 0, lower = 0, pivot = 1, aside = 0;
    if (thread < width) {
      upper = matrix(k, thread);
      lower = matrix(p, thread);
      pivot = matrix(p, k);
      aside = matrix(thread == p ? k : thread, k);
    }
    __syncthreads();
    if (thread < width) {
      matrix(p, thread) = upper;
      matrix(k, thread) = (thread == k ? A(1) : lower) / pivot;
      column[thread] = aside;
    }
    __syncthreads();
    block_entries(width, [&](int i, int j) {
      if (i != k) matrix(i, j) = (j == k ? A(0) : matrix(i, j)) - column[i] * matrix(k, j);
    });
  }
  // Rows that were swapped are columns of the inverse.
  if (thread < width) {
    for (int k = width - 1; k >= 0; --k) {
      const int p = int(swaps[k]);
      const A value = matrix(thread, k);
      matrix(thread, k) = matrix(thread, p);
      matrix(thread, p) = value;
    }
  }
  __syncthreads();
}

// Numbers of shared memory that block_core takes beside the core.
template <int kTile>
int64_t core_numbers(int64_t r) {
  return kGramNumbers<kTile> + invert_numbers(r);
}

// core = K = (I - M / 2)^-1 of one matrix, left in shared memory.
template <int kTile, typename A>
__device__ void block_core(Factors<A> B, int64_t rows, Small<A> core, A* scratch) {
  const int r = B.r;
  block_gram<kTile>(B, B, rows, 2 * r, scratch, [&](int i, int j, A value) {
    core(swapped(i, r), j) = A(swapped(i, r) == j) - (j < r ? value : -value) / 2;
  });
  block_invert(core, scratch + kGramNumbers<kTile>);
}

// From dK to the N for which dB = B N: dM = K^T dK K^T / 2, dG[swapped(i)][j] = sign(j) dM[i][j], N = dG + dG^T.
// `grad` holds dK and is overwritten; the result is left in `result`.
template <typename A>
__device__ void block_core_backward(Small<A> core, Small<A> grad, Small<A> result) {
  const int width = core.width, r = width / 2;
  block_entries(width, [&](int i, int j) {
    result(i, j) = dot<A>(width, [&](int l) { return core(l, i); }, [&](int l) { return grad(l, j); });
  });
  block_entries(width, [&](int i, int j) {
    grad(i, j) = dot<A>(width, [&](int l) { return result(i, l); }, [&](int l) { return core(j, l); }) / 2;
  });
  const auto grad_gram = [&](int i, int j) {
    const A value = grad(swapped(i, r), j);
    return j < r ? value : -value;
  };
  block_entries(width, [&](int i, int j) { result(i, j) = grad_gram(i, j) + grad_gram(j, i); });
}

}  // namespace lorsa::cuda
