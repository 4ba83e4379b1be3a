// C = R_out diag(s + d) R_in^T - diag(s) of every module of a model, forward and backward, two launches each.
//
// With E = R - I = B Z B^T (small_matrix.cuh), D = diag(s + d), F = Z_out B_out^T D, H = D B_in Z_in^T,
// S = B_out^T D B_in and T = Z_out S Z_in^T,
//     C = diag(d) + B_out (F + T B_in^T) + H B_in^T,
// 8 r k^2 multiplications. Forward writes C once, k^2 numbers; the eager reference forms R - I of both sides and four
// summands, 12 k^2 numbers moved, and 2 k^3 multiplications. Backward reads dC twice, the second time out of the L2
// cache, and writes thin matrices alone: 2 k^2 numbers, where eager moves some 25 k^2.
#include "small_matrix.cuh"

namespace lorsa::cuda {
namespace {

constexpr int kGram = 4;  // tile of block_gram

// First row of each module of one launch, and first entry of its C, as a kernel argument (4 KB for all arguments).
constexpr int64_t kModules = 320;

struct Starts {
  int32_t row[kModules + 1];
  int64_t entry[kModules];
};

// The arguments, at the first module of a launch.
template <typename A>
struct Data {
  const A *P_out, *Q_out, *P_in, *Q_in, *s, *d;
  A *K_out, *K_in, *T;
  int r;
};

// One module.
template <typename A>
struct Module {
  Factors<A> B_out, B_in;
  Core<A> Z_out, Z_in;
  const A *s, *d;
  int64_t k;

  __device__ Module(const Data<A>& data, const Starts& starts, int index)
      : Module(data, starts, index, int64_t{starts.row[index]} * data.r) {}
  __device__ Module(const Data<A>& data, const Starts& starts, int index, int64_t factor)
      : B_out{data.P_out + factor, data.Q_out + factor, data.r},
        B_in{data.P_in + factor, data.Q_in + factor, data.r},
        Z_out{data.K_out + int64_t{index} * 4 * data.r * data.r, data.r},
        Z_in{data.K_in + int64_t{index} * 4 * data.r * data.r, data.r},
        s(data.s + starts.row[index]),
        d(data.d + starts.row[index]),
        k(starts.row[index + 1] - starts.row[index]) {}

  __device__ A D(int64_t row) const { return s[row] + d[row]; }
};

// Entry (row, j) of D B Z^T.
template <typename A>
__device__ A turned(const Module<A>& module, const Factors<A>& B, const Core<A>& Z, int64_t row, int j) {
  return module.D(row) * dot<A>(2 * B.r, [&](int l) { return B(row, l); }, [&](int l) { return Z(j, l); });
}

// One block a module: both cores, and T.
template <typename A>
__global__ void __launch_bounds__(kThreads) cores_kernel(Data<A> data, Starts starts) {
  A* shared = reinterpret_cast<A*>(shared_memory());
  const int width = 2 * data.r;
  const Small<A> small{shared, width}, product{small.at + Small<A>::numbers(width), width};
  A* scratch = product.at + Small<A>::numbers(width);
  const Module<A> module(data, starts, blockIdx.x);
  const int64_t first = int64_t{blockIdx.x} * width * width;

  block_core<kGram>(module.B_out, module.k, small, scratch);
  block_entries(width, [&](int i, int j) { data.K_out[first + i * width + j] = small(i, j); });
  block_core<kGram>(module.B_in, module.k, small, scratch);
  block_entries(width, [&](int i, int j) { data.K_in[first + i * width + j] = small(i, j); });

  block_gram<kGram>(
      module.B_out, [&](int64_t row, int j) { return module.D(row) * module.B_in(row, j); }, module.k, width, scratch,
      [&](int i, int j, A value) { small(i, j) = value; });
  block_entries(width, [&](int i, int j) {
    product(i, j) = dot<A>(width, [&](int l) { return module.Z_out(i, l); }, [&](int l) { return small(l, j); });
  });
  block_entries(width, [&](int i, int j) {
    data.T[first + i * width + j] =
        dot<A>(width, [&](int l) { return product(i, l); }, [&](int l) { return module.Z_in(j, l); });
  });
}

constexpr int kTile = 64;   // rows and columns of C that a block writes
constexpr int kInner = 16;  // of the 4 r summands of an entry, those that are in shared memory at a time

// C = diag(d) + [B_out, H] [F + T B_in^T; B_in^T]. Both factors are made where they are needed; only C is written.
template <typename A>
__global__ void __launch_bounds__(kThreads) fill_kernel(Data<A> data, A* C, Starts starts) {
  const Module<A> module(data, starts, blockIdx.z);
  const int64_t first_row = int64_t{blockIdx.y} * kTile, first_column = int64_t{blockIdx.x} * kTile, k = module.k;
  if (first_row >= k || first_column >= k) return;
  const int width = 2 * data.r;
  const A* T = data.T + int64_t{blockIdx.z} * width * width;
  A* left = reinterpret_cast<A*>(shared_memory());  // (kTile, kInner)
  A* right = left + kTile * kInner;                 // (kInner, kTile)

  // A warp has 32 neighbouring columns, and 32 more.
  constexpr int kRowsOfThread = kTile / (kThreads / 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  A sums[kRowsOfThread][2] = {};
  for (int m0 = 0; m0 < 2 * width; m0 += kInner) {
    for (int e = threadIdx.x; e < kTile * kInner; e += kThreads) {
      const int64_t row = first_row + e / kInner;
      const int m = m0 + e % kInner;
      A value = 0;
      if (row < k && m < width) value = module.B_out(row, m);
      if (row < k && m >= width && m < 2 * width) value = turned(module, module.B_in, module.Z_in, row, m - width);
      left[e] = value;
    }
    for (int e = threadIdx.x; e < kTile * kInner; e += kThreads) {
      const int64_t column = first_column + e % kTile;
      const int m = m0 + e / kTile;
      A value = 0;
      if (column < k && m < width) {
        value = turned(module, module.B_out, module.Z_out, column, m) +
                dot<A>(width, [&](int l) { return T[m * width + l]; }, [&](int l) { return module.B_in(column, l); });
      }
      if (column < k && m >= width && m < 2 * width) value = module.B_in(column, m - width);
      right[e] = value;
    }
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kInner; ++l) {
      const A near = right[l * kTile + lane], far = right[l * kTile + lane + 32];
#pragma unroll
      for (int u = 0; u < kRowsOfThread; ++u) {
        const A value = left[(warp + u * (kThreads / 32)) * kInner + l];
        sums[u][0] += value * near;
        sums[u][1] += value * far;
      }
    }
    __syncthreads();
  }
  A* out = C + starts.entry[blockIdx.z];
#pragma unroll
  for (int u = 0; u < kRowsOfThread; ++u) {
    const int64_t row = first_row + warp + u * (kThreads / 32);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const int64_t column = first_column + lane + 32 * v;
      if (row < k && column < k) out[row * k + column] = sums[u][v] + (row == column ? module.d[row] : A(0));
    }
  }
}

// Of the backward pass: G [B_in, F^T] (even blocks, 64 rows of G each) and G^T [B_out, H] (odd blocks, 64 columns),
// both (k, 4r). The two blocks that read the same part of G are neighbours in time.
constexpr int kDepth = 32;                  // of the k summands of an entry, those that are in shared memory at a time
constexpr int kQuarters = kThreads / kTile;  // threads of an output row: each has four columns, or a part of the sum
constexpr int kColumns = 4 * kQuarters;

template <typename A>
__global__ void __launch_bounds__(kThreads) products_kernel(
    const A* G, Data<A> data, A* by_rows, A* by_columns, Starts starts) {
  const Module<A> module(data, starts, blockIdx.y);
  const bool columns = blockIdx.x % 2;
  const int64_t first = int64_t{blockIdx.x / 2} * kTile, k = module.k;
  if (first >= k) return;
  const int width = 2 * data.r;
  G += starts.entry[blockIdx.y];
  A* out = (columns ? by_columns : by_rows) + int64_t{starts.row[blockIdx.y]} * 2 * width;
  const Factors<A> plain = columns ? module.B_out : module.B_in, other = columns ? module.B_in : module.B_out;
  const Core<A> Z = columns ? module.Z_in : module.Z_out;

  A* part = reinterpret_cast<A*>(shared_memory());  // (kTile, kDepth), rows padded by one
  A* thin = part + kTile * (kDepth + 1);            // (kDepth, kColumns)
  A* sums_of_quarters = thin + kDepth * kColumns;   // (kThreads, 4)
  const int row = threadIdx.x % kTile, quarter = threadIdx.x / kTile;
  const int in_use = width / 2 < kQuarters ? (width <= 2 ? 1 : 2) : kQuarters;  // quarters that differ in columns
  const int splits = kQuarters / in_use, group = quarter % in_use, split = quarter / in_use;

  for (int m0 = 0; m0 < 2 * width; m0 += 4 * in_use) {
    A sums[4] = {};
    for (int64_t l0 = 0; l0 < k; l0 += kDepth) {
      for (int e = threadIdx.x; e < kTile * kDepth; e += kThreads) {
        // Neighbouring threads read neighbouring columns of G either way.
        const int i = columns ? e % kTile : e / kDepth, l = columns ? e / kTile : e % kDepth;
        const int64_t mine = first + i, summed = l0 + l;
        const int64_t place = columns ? summed * k + mine : mine * k + summed;
        part[i * (kDepth + 1) + l] = mine < k && summed < k ? G[place] : A(0);
      }
      for (int e = threadIdx.x; e < kDepth * kColumns; e += kThreads) {
        const int64_t summed = l0 + e / kColumns;
        const int m = m0 + e % kColumns;
        A value = 0;
        if (summed < k && m < width) value = plain(summed, m);
        if (summed < k && m >= width && m < 2 * width) value = turned(module, other, Z, summed, m - width);
        thin[e] = value;
      }
      __syncthreads();
      for (int l = split; l < kDepth; l += splits) {
        const A value = part[row * (kDepth + 1) + l];
#pragma unroll
        for (int u = 0; u < 4; ++u) sums[u] += value * thin[l * kColumns + 4 * group + u];
      }
      __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) sums_of_quarters[threadIdx.x * 4 + u] = sums[u];
    __syncthreads();
    if (split == 0 && first + row < k) {
      for (int u = 0; u < 4; ++u) {
        const int m = m0 + 4 * group + u;
        A sum = 0;
        for (int other_split = 0; other_split < splits; ++other_split) {
          sum += sums_of_quarters[((other_split * in_use + group) * kTile + row) * 4 + u];
        }
        if (m < 2 * width) out[(first + row) * 2 * width + m] = sum;
      }
    }
  }
}

template <typename A>
struct Gradients {
  A *P_out, *Q_out, *P_in, *Q_in, *d;
};

// Shared memory of finish_kernel: five small matrices, the last of which makes room for block_gram.
int64_t finish_last(int64_t r) {
  const int64_t small = Small<float>::numbers(2 * r);
  return small > kGramNumbers<kGram> ? small : kGramNumbers<kGram>;
}

// One block a module: from the products with G to the gradients.
//     dT = B_out^T G B_in,   dS = Z_out^T dT Z_in
//     dZ_out = (G^T B_out)^T D B_out + dT Z_in S^T,   dZ_in = (G B_in)^T D B_in + dT^T Z_out S
//     dB_out = G F^T + G B_in T^T + D (G^T B_out Z_out + B_in dS^T) + B_out N_out   (N: block_core_backward)
//     dB_in = G^T H + G^T B_out T + D (G B_in Z_in + B_out dS) + B_in N_in
//     dd = diag(G) + rowsum(B_out * G^T B_out Z_out) + rowsum(B_in * (G B_in Z_in + B_out dS))
template <typename A>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    const A* G, Data<A> data, const A* by_rows, const A* by_columns, Gradients<A> out, Starts starts) {
  const Module<A> module(data, starts, blockIdx.x);
  const int r = data.r, width = 2 * r;
  const int64_t first = starts.row[blockIdx.x], k = module.k;
  const Factors<A>&B_out = module.B_out, &B_in = module.B_in;
  const Core<A>&Z_out = module.Z_out, &Z_in = module.Z_in;
  const A* rows = by_rows + first * 2 * width;        // [G B_in, G F^T]
  const A* columns = by_columns + first * 2 * width;  // [G^T B_out, G^T H]
  const auto G_in = [&](int64_t row, int j) { return rows[row * 2 * width + j]; };
  const auto G_out = [&](int64_t row, int j) { return columns[row * 2 * width + j]; };
  A* T = data.T + int64_t{blockIdx.x} * width * width;

  const int64_t numbers = Small<A>::numbers(width);
  const Small<A> S{reinterpret_cast<A*>(shared_memory()), width}, dT{S.at + numbers, width};
  const Small<A> dZ_in{dT.at + numbers, width}, dZ_out{dZ_in.at + numbers, width}, last{dZ_out.at + numbers, width};
  const auto gram = [&](auto left, auto right, Small<A> result) {
    block_gram<kGram>(left, right, k, width, last.at, [&](int i, int j, A value) { result(i, j) = value; });
  };
  gram(B_out, [&](int64_t row, int j) { return module.D(row) * B_in(row, j); }, S);
  gram(B_out, G_in, dT);
  gram(G_in, [&](int64_t row, int j) { return module.D(row) * B_in(row, j); }, dZ_in);
  gram(G_out, [&](int64_t row, int j) { return module.D(row) * B_out(row, j); }, dZ_out);

  // result(i, j) = sum over l of left(i, l) right(l, j)
  const auto product = [&](auto left, auto right, auto write) {
    block_entries(width, [&](int i, int j) {
      write(i, j, dot<A>(width, [&](int l) { return left(i, l); }, [&](int l) { return right(l, j); }));
    });
  };
  const auto to = [](Small<A> result) { return [=](int i, int j, A value) { result(i, j) = value; }; };
  const auto add_to = [](Small<A> result) { return [=](int i, int j, A value) { result(i, j) += value; }; };
  const auto transposed = [](auto matrix) { return [=](int i, int j) { return matrix(j, i); }; };
  product(Z_out, S, to(last));
  product(last, transposed(Z_in), [&](int i, int j, A value) { T[i * width + j] = value; });
  product(transposed(dT), last, add_to(dZ_in));
  product(Z_in, transposed(S), to(last));
  product(dT, last, add_to(dZ_out));
  product(transposed(Z_out), dT, to(last));
  const Small<A> dS = S;  // S is read no more
  product(last, Z_in, to(dS));

  // From dZ to N, where dZ lay.
  const auto through_core = [&](const Core<A>& Z, Small<A> dZ) {
    block_entries(width, [&](int i, int j) {
      const A value = dZ(i, swapped(j, r));
      dT(i, j) = i < r ? value : -value;  // dK
      last(i, j) = Z.K[i * width + j];
    });
    block_core_backward(last, dT, dZ);
  };
  through_core(Z_out, dZ_out);
  through_core(Z_in, dZ_in);
  const Small<A> N_out = dZ_out, N_in = dZ_in, Tm = dT;
  block_entries(width, [&](int i, int j) { Tm(i, j) = T[i * width + j]; });

  // A thread has columns c and r + c of a row; the threads of a row lie side by side.
  A* parts_of_dd = last.at;
  const int c = threadIdx.x % r, step = kThreads / r, own = threadIdx.x / r;
  for (int64_t base = 0; base < k; base += step) {
    const int64_t row = base + own;
    const bool used = own < step && row < k;
    A part = 0;
    if (used) {
      const A D = module.D(row);
      A grad_out[2], grad_in[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int e = c + half * r;
        A to_out = 0, to_in = 0, turned_out = 0, turned_in = 0, by_dS_out = 0;
        for (int j = 0; j < width; ++j) {
          const A b_out = B_out(row, j), b_in = B_in(row, j), g_in = G_in(row, j), g_out = G_out(row, j);
          to_out += g_in * Tm(e, j) + b_out * N_out(j, e);
          to_in += g_out * Tm(j, e) + b_in * N_in(j, e);
          turned_out += g_out * Z_out(j, e);
          turned_in += g_in * Z_in(j, e) + b_out * dS(j, e);
          by_dS_out += b_in * dS(e, j);
        }
        grad_out[half] = G_in(row, width + e) + to_out + D * (turned_out + by_dS_out);
        grad_in[half] = G_out(row, width + e) + to_in + D * turned_in;
        part += B_out(row, e) * turned_out + B_in(row, e) * turned_in;
      }
      const int64_t place = (first + row) * r + c;
      out.P_out[place] = grad_out[0];
      out.Q_out[place] = grad_out[1];
      out.P_in[place] = grad_in[0];
      out.Q_in[place] = grad_in[1];
    }
    parts_of_dd[threadIdx.x] = part;
    __syncthreads();
    if (used && c == 0) {
      A sum = G[starts.entry[blockIdx.x] + row * k + row];
      for (int other = 0; other < r; ++other) sum += parts_of_dd[threadIdx.x + other];
      out.d[first + row] = sum;
    }
    __syncthreads();
  }
}

// Where a launch begins.
struct Chunk {
  Starts starts;
  int64_t count, first, row, entry, largest;
};

// Calls launch_chunk(chunk) for as many modules at a time as fit into a kernel's arguments.
template <typename Function>
cudaError_t in_chunks(Sizes sizes, Function launch_chunk) {
  int64_t row = 0, entry = 0;
  for (int64_t first = 0; first < sizes.count; first += kModules) {
    Chunk chunk = {};
    chunk.count = sizes.count - first < kModules ? sizes.count - first : kModules;
    chunk.first = first;
    chunk.row = row;
    chunk.entry = entry;
    int64_t entries = 0;
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t k = sizes.at[first + i];
      chunk.starts.row[i + 1] = static_cast<int32_t>(chunk.starts.row[i] + k);
      chunk.starts.entry[i] = entries;
      entries += k * k;
      chunk.largest = k > chunk.largest ? k : chunk.largest;
    }
    LORSA_RETURN_ERROR(launch_chunk(chunk));
    row += chunk.starts.row[chunk.count];
    entry += entries;
  }
  return cudaSuccess;
}

template <typename A>
Data<A> data_of(const Subspace& op, const Chunk& chunk, const void* K_out, const void* K_in, A* T) {
  const auto factor = [&](const void* pointer) { return static_cast<const A*>(pointer) + chunk.row * op.r; };
  const auto vector = [&](const void* pointer) { return static_cast<const A*>(pointer) + chunk.row; };
  // The backward pass does not write to the cores.
  const auto cores = [&](const void* pointer) {
    return static_cast<A*>(const_cast<void*>(pointer)) + chunk.first * 4 * op.r * op.r;
  };
  return {
      factor(op.P_out), factor(op.Q_out), factor(op.P_in), factor(op.Q_in), vector(op.s), vector(op.d), cores(K_out),
      cores(K_in), T + chunk.first * 4 * op.r * op.r, static_cast<int>(op.r)};
}

}  // namespace

cudaError_t launch_subspace_core(
    const Subspace& op, void* C, void* K_out, void* K_in, void* scratch, cudaStream_t stream) {
  return with_factor_type(op.type, [&](auto zero) {
    using A = decltype(zero);
    return in_chunks(op.sizes, [&](const Chunk& chunk) {
      const Data<A> data = data_of(op, chunk, K_out, K_in, static_cast<A*>(scratch));
      const size_t shared = sizeof(A) * (2 * Small<A>::numbers(2 * op.r) + core_numbers<kGram>(op.r));
      LORSA_RETURN_ERROR(launch(cores_kernel<A>, dim3(chunk.count), kThreads, shared, stream, data, chunk.starts));
      const int64_t tiles = divide_up(chunk.largest, kTile);
      return launch(
          fill_kernel<A>, dim3(tiles, tiles, chunk.count), kThreads, sizeof(A) * 2 * kTile * kInner, stream, data,
          static_cast<A*>(C) + chunk.entry, chunk.starts);
    });
  });
}

cudaError_t launch_subspace_core_backward(
    const Subspace& op, const void* grad_C, const void* K_out, const void* K_in, void* dP_out, void* dQ_out,
    void* dP_in, void* dQ_in, void* dd, void* scratch, cudaStream_t stream) {
  int64_t rows = 0;
  for (int64_t i = 0; i < op.sizes.count; ++i) rows += op.sizes.at[i];
  return with_factor_type(op.type, [&](auto zero) {
    using A = decltype(zero);
    A* by_rows = static_cast<A*>(scratch);
    A* by_columns = by_rows + rows * 4 * op.r;
    return in_chunks(op.sizes, [&](const Chunk& chunk) {
      const Data<A> data = data_of(op, chunk, K_out, K_in, by_columns + rows * 4 * op.r);
      const A* G = static_cast<const A*>(grad_C) + chunk.entry;
      A* of_rows = by_rows + chunk.row * 4 * op.r;
      A* of_columns = by_columns + chunk.row * 4 * op.r;
      const size_t tiles = sizeof(A) * (kTile * (kDepth + 1) + kDepth * kColumns + kThreads * 4);
      LORSA_RETURN_ERROR(launch(
          products_kernel<A>, dim3(2 * divide_up(chunk.largest, kTile), chunk.count), kThreads, tiles, stream, G, data,
          of_rows, of_columns, chunk.starts));
      const auto factor = [&](void* pointer) { return static_cast<A*>(pointer) + chunk.row * op.r; };
      const Gradients<A> out{
          factor(dP_out), factor(dQ_out), factor(dP_in), factor(dQ_in), static_cast<A*>(dd) + chunk.row};
      const size_t shared = sizeof(A) * (4 * Small<A>::numbers(2 * op.r) + finish_last(op.r));
      return launch(
          finish_kernel<A>, dim3(chunk.count), kThreads, shared, stream, G, data, of_rows, of_columns, out,
          chunk.starts);
    });
  });
}

}  // namespace lorsa::cuda
