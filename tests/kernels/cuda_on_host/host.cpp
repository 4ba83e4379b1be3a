// Runs blocks of threads as fibers, and offers the operators of csrc/cuda, kernels and bindings, on CPU tensors as
// torch.ops.lorsa_cuda_on_host.
#include <torch/library.h>

// They must not take the place of the operators on CUDA tensors.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(space, key, m) [[maybe_unused]] static void not_registered(torch::Library& m)
#include "../../../kernels/csrc/cuda/bindings.cpp"

#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace lorsa::cuda {
alignas(16) unsigned char shared_bytes[host::kMostShared + 1024];
}

namespace host {
namespace {

constexpr size_t kStack = 256 * 1024;
constexpr unsigned char kFill = 0xff;  // NaN in every floating type

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  At at;
  uint64_t given[2];  // to the warp, in shuffles of even and odd number
  unsigned shuffles;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
const std::function<void()>* body;
int64_t order_seed = 0;

void run_fiber() {
  (*body)();
  fibers[threadIdx.x].at = At::kEnd;
}

size_t count_at(At place, size_t first, size_t last) {
  return std::count_if(fibers.begin() + first, fibers.begin() + last, [&](const Fiber& fiber) { return fiber.at == place; });
}

// Lets the fibers [first, last) go on if all of them wait there.
bool release(At barrier, size_t first, size_t last) {
  const size_t waiting = count_at(barrier, first, last);
  TORCH_CHECK(waiting == 0 || count_at(At::kEnd, first, last) == 0, "threads wait at a barrier that others never reach");
  if (waiting < last - first) return false;
  for (size_t i = first; i < last; ++i) fibers[i].at = At::kNothing;
  return true;
}

std::vector<unsigned> order_of(unsigned threads) {
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  if (order_seed < 0) std::reverse(order.begin(), order.end());
  if (order_seed > 0) std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(order_seed)));
  return order;
}

}  // namespace

void wait(At barrier) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.at = barrier;
  swapcontext(&fiber.context, &scheduler);
}

uint64_t exchange(uint64_t given, int offset) {
  const unsigned self = threadIdx.x;
  const int parity = fibers[self].shuffles++ % 2;
  fibers[self].given[parity] = given;
  wait(At::kWarpBarrier);
  return fibers[self ^ static_cast<unsigned>(offset)].given[parity];
}

void run_block(size_t shared, const std::function<void()>& block_body) {
  const unsigned threads = blockDim.x;
  TORCH_CHECK(threads % 32 == 0, "blocks of whole warps, please");
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  unsigned char* bytes = lorsa::cuda::shared_bytes;
  std::fill(bytes, bytes + sizeof(lorsa::cuda::shared_bytes), kFill);
  body = &block_body;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    fiber.at = At::kNothing;
    fiber.shuffles = 0;
    makecontext(&fiber.context, run_fiber, 0);
  }
  const std::vector<unsigned> order = order_of(threads);
  for (bool ended = false; !ended;) {
    for (unsigned i : order) {
      if (fibers[i].at != At::kNothing) continue;
      threadIdx = dim3(i);
      swapcontext(&scheduler, &fibers[i].context);
    }
    ended = count_at(At::kEnd, 0, threads) == threads;
    bool released = ended || release(At::kBlockBarrier, 0, threads);
    for (unsigned warp = 0; warp < threads; warp += 32) released |= release(At::kWarpBarrier, warp, warp + 32);
    TORCH_CHECK(released, "the threads of a block wait at different barriers");
  }
  const bool kept = std::all_of(
      bytes + shared, bytes + sizeof(lorsa::cuda::shared_bytes), [](unsigned char byte) { return byte == kFill; });
  TORCH_CHECK(kept, "a block has written beyond its shared memory of ", shared, " bytes");
}

}  // namespace host

TORCH_LIBRARY(lorsa_cuda_on_host, m) {
  m.def("rotation_core", &lorsa::cuda::rotation_core);
  m.def("rotation_core_backward", &lorsa::cuda::rotation_core_backward);
  m.def("subspace_core", &lorsa::cuda::subspace_core);
  m.def("subspace_core_backward", &lorsa::cuda::subspace_core_backward);
  m.def("thin_rotation", &lorsa::cuda::thin_rotation);
  m.def("thin_rotation_backward", &lorsa::cuda::thin_rotation_backward);
  m.def("component_sensitivity", &lorsa::cuda::component_sensitivity);
  // 0: threads run in the order of their numbers; -1: the other way round; else: shuffled with that seed.
  m.def("set_order", [](int64_t seed) { host::order_seed = seed; });
}
