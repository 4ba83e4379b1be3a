// Squared scores of the components, summed over samples: M = left^T right (K, K) for the tokens of one sample, then
//     kind 0, value:  g_i = M_ii^2
//     kind 1, own:    g_i = M_ii^2 + s_i^2 sum over j != i of M_ij^2 + M_ji^2
//     kind 2, pair:   g_i = M_ii^2 + sum over j != i of (s_j M_ij - s_i M_ji)^2 + (s_i M_ij - s_j M_ji)^2
//
// M is never stored. The eager reference writes it for every sample and reads it, and its transpose, several times:
// some 10 K^2 numbers moved a sample. Here a block has a pair of tiles, M_IJ and M_JI, in its registers and reads 256
// columns of left and right while it streams over the tokens: T K^2 / 32 numbers of the sample's, out of the L2 cache,
// where left and right, 2 T K numbers, lie. What it adds to its components' scores it writes to a place of its own, and
// a second kernel adds up in a fixed order: no atomics, equal inputs give equal bits.
#include "device.cuh"

namespace lorsa::cuda {
namespace {

constexpr int kTile = 64;   // components
constexpr int kDepth = 16;  // tokens in shared memory at a time
constexpr int kSide = 16;   // kSide x kSide threads, each with 4 x 4 pairs of components
constexpr int kThreads = kSide * kSide;
constexpr int64_t kPairKind = 2;

// First tokens of the samples of one launch, as a kernel argument (4 KB for all arguments).
constexpr int64_t kSamples = 960;

struct Starts {
  int32_t at[kSamples + 1];
};

template <typename A>
struct Data {
  const A *left, *right, *s;
  int64_t components;
};

// What the pairs add: of component i from tile t in slice z of the samples, and M_ii^2.
template <typename A>
struct Partial {
  A *pairs, *own;
  int64_t components, tiles;

  __device__ A& of_pairs(int slice, int64_t tile, int64_t i) const {
    return pairs[(slice * tiles + tile) * components + i];
  }
  __device__ A& of_own(int slice, int64_t i) const { return own[slice * components + i]; }
};

// tile (kDepth, kTile) = the tokens from first_token and the components from `first` on, zero outside.
template <typename A>
__device__ void stage(const A* from, int64_t components, int64_t first, int64_t first_token, int64_t end, A* tile) {
  for (int e = threadIdx.x; e < kDepth * kTile; e += kThreads) {
    const int64_t token = first_token + e / kTile, i = first + e % kTile;
    tile[e] = token < end && i < components ? from[token * components + i] : A(0);
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads) pairs_kernel(
    Data<A> data, int samples, bool pair, Partial<A> partial, Starts starts) {
  // Block p has tiles (I, J) with I <= J: p = J (J + 1) / 2 + I.
  int64_t J = static_cast<int64_t>((sqrt(8.0 * blockIdx.x + 1) - 1) / 2);
  while (J * (J + 1) / 2 > blockIdx.x) --J;
  while ((J + 1) * (J + 2) / 2 <= blockIdx.x) ++J;
  const int64_t I = blockIdx.x - J * (J + 1) / 2, first_i = I * kTile, first_j = J * kTile;
  const int slice = blockIdx.y;

  A* left_i = reinterpret_cast<A*>(shared_memory());
  A *right_i = left_i + kDepth * kTile, *left_j = right_i + kDepth * kTile, *right_j = left_j + kDepth * kTile;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  A s_i[4], s_j[4];
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int64_t i = first_i + 4 * y + u, j = first_j + 4 * x + u;
    s_i[u] = i < data.components ? data.s[i] : A(0);
    s_j[u] = j < data.components ? data.s[j] : A(0);
  }
  A of_rows[4] = {}, of_columns[4] = {}, of_own[4] = {};

  for (int sample = slice; sample < samples; sample += gridDim.y) {
    const int64_t end = starts.at[sample + 1];
    A upper[4][4] = {}, lower[4][4] = {};  // M_ij, M_ji
    for (int64_t token = starts.at[sample]; token < end; token += kDepth) {
      stage(data.left, data.components, first_i, token, end, left_i);
      stage(data.right, data.components, first_i, token, end, right_i);
      stage(data.left, data.components, first_j, token, end, left_j);
      stage(data.right, data.components, first_j, token, end, right_j);
      __syncthreads();
#pragma unroll 4
      for (int t = 0; t < kDepth; ++t) {
        const auto four = [&](const A* tile, int place) {
          return *reinterpret_cast<const Four<A>*>(tile + t * kTile + 4 * place);
        };
        const Four<A> li = four(left_i, y), ri = four(right_i, y), lj = four(left_j, x), rj = four(right_j, x);
#pragma unroll
        for (int u = 0; u < 4; ++u) {
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            upper[u][v] += li.at[u] * rj.at[v];
            lower[u][v] += lj.at[v] * ri.at[u];
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const A ij = upper[u][v], ji = lower[u][v];
        if (first_i + 4 * y + u == first_j + 4 * x + v) {
          of_own[u] += ij * ij;
          continue;
        }
        const A out = pair ? s_j[v] * ij - s_i[u] * ji : ij, in = pair ? s_i[u] * ij - s_j[v] * ji : ji;
        const A gain = out * out + in * in;
        of_rows[u] += gain;
        of_columns[v] += gain;
      }
    }
  }

  // One value a component and thread of its row, or column, of threads: (kSide, kTile), summed up in order.
  A* sums = left_i;
  const auto write = [&](const A(&values)[4], int own, int others, auto target, int64_t first) {
#pragma unroll
    for (int u = 0; u < 4; ++u) sums[others * kTile + 4 * own + u] = values[u];
    __syncthreads();
    if (threadIdx.x < kTile && first + threadIdx.x < data.components) {
      A sum = 0;
      for (int other = 0; other < kSide; ++other) sum += sums[other * kTile + threadIdx.x];
      target(first + threadIdx.x, sum);
    }
    __syncthreads();
  };
  write(of_rows, y, x, [&](int64_t i, A sum) { partial.of_pairs(slice, J, i) = sum; }, first_i);
  if (I == J) {
    // Row sums have both orders of each pair of this tile's.
    write(of_own, y, x, [&](int64_t i, A sum) { partial.of_own(slice, i) = sum; }, first_i);
  } else {
    write(of_columns, x, y, [&](int64_t j, A sum) { partial.of_pairs(slice, I, j) = sum; }, first_j);
  }
}

// Adds up the slices and tiles; for kind 1 the pairs weigh s_i^2. Launches after the first add to the result.
template <typename A>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    Data<A> data, Partial<A> partial, int slices, bool pair, bool add, A* result) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= data.components) return;
  A pairs = 0, own = 0;
  for (int slice = 0; slice < slices; ++slice) {
#pragma unroll 4
    for (int64_t tile = 0; tile < partial.tiles; ++tile) pairs += partial.of_pairs(slice, tile, i);
    own += partial.of_own(slice, i);
  }
  result[i] = (add ? result[i] : A(0)) + own + (pair ? pairs : data.s[i] * data.s[i] * pairs);
}

// Kind 0: threads of a warp have neighbouring components, and each of the block's warps every kWarps-th sample.
constexpr int kWarps = kThreads / 32;

template <typename A>
__global__ void __launch_bounds__(kThreads) value_kernel(
    Data<A> data, int samples, bool add, A* result, Starts starts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = int64_t{blockIdx.x} * 32 + lane;
  A* sums = reinterpret_cast<A*>(shared_memory());  // (kWarps, 32)
  A sum = 0;
  if (i < data.components) {
    for (int sample = warp; sample < samples; sample += kWarps) {
      A value = 0;
#pragma unroll 8
      for (int64_t token = starts.at[sample]; token < starts.at[sample + 1]; ++token) {
        value += data.left[token * data.components + i] * data.right[token * data.components + i];
      }
      sum += value * value;
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || i >= data.components) return;
  for (int other = 1; other < kWarps; ++other) sum += sums[other * 32 + lane];
  result[i] = (add ? result[i] : A(0)) + sum;
}

int64_t tile_count(int64_t components) { return divide_up(components, kTile); }

// Slices of the samples: enough for blocks everywhere, where the pairs of tiles are not.
int64_t slice_count(const Sensitivity& op) {
  constexpr int64_t kBlocks = 512;
  const int64_t tiles = tile_count(op.components), count = divide_up(kBlocks, tiles * (tiles + 1) / 2);
  const int64_t samples = op.rows.count < kSamples ? op.rows.count : kSamples;
  return count < samples ? count : samples > 1 ? samples : 1;
}

}  // namespace

int64_t component_sensitivity_scratch(const Sensitivity& op) {
  return op.kind == 0 ? 0 : slice_count(op) * (tile_count(op.components) + 1) * op.components;
}

cudaError_t launch_component_sensitivity(const Sensitivity& op, void* result, void* scratch, cudaStream_t stream) {
  return with_factor_type(op.type, [&](auto zero) -> cudaError_t {
    using A = decltype(zero);
    A* out = static_cast<A*>(result);
    const int64_t K = op.components, tiles = tile_count(K), slices = slice_count(op);
    A* pairs = static_cast<A*>(scratch);
    const Partial<A> partial{pairs, pairs + slices * tiles * K, K, tiles};
    const bool pair = op.kind == kPairKind;
    int64_t token = 0;
    // No sample at all is one launch with none: it writes zero.
    for (int64_t first = 0; first == 0 || first < op.rows.count; first += kSamples) {
      const int64_t samples = op.rows.count - first < kSamples ? op.rows.count - first : kSamples;
      Starts starts = {};
      for (int64_t i = 0; i < samples; ++i) {
        starts.at[i + 1] = static_cast<int32_t>(starts.at[i] + op.rows.at[first + i]);
      }
      const Data<A> data{
          static_cast<const A*>(op.left) + token * K, static_cast<const A*>(op.right) + token * K,
          static_cast<const A*>(op.s), K};
      token += starts.at[samples];
      const int count = static_cast<int>(samples);
      if (op.kind == 0) {
        LORSA_RETURN_ERROR(launch(
            value_kernel<A>, dim3(divide_up(K, 32)), kThreads, sizeof(A) * kThreads, stream, data, count, first > 0,
            out, starts));
        continue;
      }
      LORSA_RETURN_ERROR(launch(
          pairs_kernel<A>, dim3(tiles * (tiles + 1) / 2, slices), kThreads, sizeof(A) * 4 * kDepth * kTile, stream,
          data, count, pair, partial, starts));
      LORSA_RETURN_ERROR(launch(
          finish_kernel<A>, dim3(divide_up(K, kThreads)), kThreads, 0, stream, data, partial, static_cast<int>(slices),
          pair, first > 0, out));
    }
    return cudaSuccess;
  });
}

}  // namespace lorsa::cuda
