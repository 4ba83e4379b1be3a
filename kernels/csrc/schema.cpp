// The names and schemas of the operators.
#include <torch/library.h>

TORCH_LIBRARY(lorsa, m) {
  m.def("rotation_core(Tensor P, Tensor Q, int[] sizes) -> Tensor");
  m.def("rotation_core_backward(Tensor grad_K, Tensor P, Tensor Q, Tensor K, int[] sizes) -> (Tensor, Tensor)");
  m.def(
      "subspace_core(Tensor P_out, Tensor Q_out, Tensor P_in, Tensor Q_in, Tensor s, Tensor d, int[] sizes)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "subspace_core_backward(Tensor grad_C, Tensor P_out, Tensor Q_out, Tensor P_in, Tensor Q_in, Tensor s, Tensor d,"
      " Tensor K_out, Tensor K_in, int[] sizes) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "thin_rotation(Tensor x, Tensor P, Tensor Q, Tensor K, Tensor? offset, bool inverse, bool keep_output)"
      " -> Tensor");
  m.def(
      "thin_rotation_backward(Tensor grad, Tensor kept, Tensor P, Tensor Q, Tensor K, Tensor? offset, bool inverse,"
      " bool kept_output) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "spectral_linear(Tensor? base, Tensor x, Tensor U, Tensor core, Tensor V, Tensor? left, Tensor? right)"
      " -> (Tensor, Tensor)");
  m.def(
      "spectral_linear_backward(Tensor grad, Tensor z, Tensor? x, Tensor U, Tensor core, Tensor V, Tensor? left,"
      " Tensor? right, bool need_x) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("component_sensitivity(Tensor left, Tensor right, Tensor s, int[] rows, int kind) -> Tensor");
}
