// y = R (x - offset) + offset for every row, in one pass over x.
//
// A row is read once and written once: 2 T n numbers moved. The eager reference reads x, writes the change, reads both
// and writes the sum, 5 T n, and 2 T n more with an offset, in seven launches; here there are two, one at rank 1.
#include "thin_rotation.cuh"

namespace lorsa::cuda {
namespace {

template <typename T, int kRows, int kDots, typename A>
__global__ void __launch_bounds__(kRowThreads) turn_kernel(
    Matrix<T> x, const T* offset, Transposed<A> B, Turn<A> Z, T* y) {
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int width = 2 * B.r;
  const Block<T, kRows> block(x, first, reinterpret_cast<T*>(shared_memory()));
  A* u = reinterpret_cast<A*>(block.tile + (x.staged ? kRows * block.padded : 0));
  A* c = u + width * kRows;
  A* partial = c + width * kRows;

  block.stage();
  block_project<kDots>(block, offset, B, partial, u);
  block_row_entries<kRows>(width, [&](int place, int row, int j) {
    c[place] = dot<A>(width, [&](int l) { return u[l * kRows + row]; }, [&](int l) { return Z(j, l); });
  });
  block_write_turned(block, B, c, y + first * x.n);
}

}  // namespace

int64_t thin_rotation_scratch(const ThinRotation& op) { return transposed_numbers(op.n, op.r); }

cudaError_t launch_thin_rotation(const ThinRotation& op, const void* x, void* y, void* scratch, cudaStream_t stream) {
  return with_data_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulator<T>::type;
    Transposed<A> B;
    LORSA_RETURN_ERROR(prepare<A>(op, static_cast<A*>(scratch), nullptr, stream, &B));
    Shape shape;
    const bool vectorised = op.n % 4 == 0 && fits_fours<T>(x) && fits_fours<T>(y) && fits_fours<T>(op.offset);
    LORSA_RETURN_ERROR(choose_shape<T>(op, vectorised, 4 * op.r, &shape));
    const Matrix<T> matrix{static_cast<const T*>(x), op.tokens, static_cast<int>(op.n), shape.staged, vectorised};
    const Turn<A> Z{{static_cast<const A*>(op.K), B.r}, op.inverse};
    return with_shape<T>(shape, op.r, [&](auto rows, auto dots) {
      constexpr int kRows = decltype(rows)::value, kDots = decltype(dots)::value;
      return launch(
          turn_kernel<T, kRows, kDots, A>, dim3(divide_up(op.tokens, kRows)), shape.threads, shape.shared, stream,
          matrix, static_cast<const T*>(op.offset), B, Z, static_cast<T*>(y));
    });
  });
}

}  // namespace lorsa::cuda
