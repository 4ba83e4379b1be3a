// Gradients of the operators, each by an operator of its own, so that what is compiled or traced sees them as such.
// Differentiating twice is refused with a sentence.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops.h"

namespace lorsa {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <typename Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

OptionalTensor optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

Tensor or_none(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

std::vector<int64_t> sizes_of(AutogradContext* context) { return context->saved_data["sizes"].toIntVector(); }

// Within a backward pass gradients are recorded under create_graph=True alone.
void refuse_second_derivative() {
  TORCH_CHECK(
      !at::GradMode::is_enabled(),
      "lorsa's operators cannot be differentiated twice (create_graph=True); LORSA_KERNELS=reference can.");
}

// What a rotation kept is its result, where it can: that of the layer, which a model may overwrite.
variable_list saved_by_rotation(AutogradContext* context) {
  try {
    return context->get_saved_variables();
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    TORCH_CHECK(
        reason.find("inplace operation") == std::string::npos, reason.substr(0, reason.find('\n')),
        " This model overwrites the result of an adapted layer, which the compiled kernels keep for the backward pass; "
        "run it with LORSA_KERNELS=reference, or leave that layer out of target_modules.");
    throw;
  }
}

struct RotationCore : Function<RotationCore> {
  static Tensor forward(AutogradContext* context, const Tensor& P, const Tensor& Q, IntArrayRef sizes) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run = op<Tensor(const Tensor&, const Tensor&, IntArrayRef)>("lorsa::rotation_core");
    Tensor K = run.call(P, Q, sizes);
    context->save_for_backward({P, Q, K});
    context->saved_data["sizes"] = sizes.vec();
    return K;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    refuse_second_derivative();
    const variable_list saved = context->get_saved_variables();
    static const auto run =
        op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, IntArrayRef)>(
            "lorsa::rotation_core_backward");
    auto [dP, dQ] = run.call(grads[0].contiguous(), saved[0], saved[1], saved[2], sizes_of(context));
    return {dP, dQ, Tensor()};
  }
};

struct SubspaceCore : Function<SubspaceCore> {
  static variable_list forward(
      AutogradContext* context, const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in,
      const Tensor& s, const Tensor& d, IntArrayRef sizes) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run =
        op<std::tuple<Tensor, Tensor, Tensor>(
            const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, IntArrayRef)>(
            "lorsa::subspace_core");
    auto [C, K_out, K_in] = run.call(P_out, Q_out, P_in, Q_in, s, d, sizes);
    context->save_for_backward({P_out, Q_out, P_in, Q_in, s, d, K_out, K_in});
    context->saved_data["sizes"] = sizes.vec();
    context->mark_non_differentiable({K_out, K_in});
    return {C, K_out, K_in};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    refuse_second_derivative();
    const variable_list saved = context->get_saved_variables();
    static const auto run =
        op<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
            const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
            const Tensor&, const Tensor&, IntArrayRef)>("lorsa::subspace_core_backward");
    auto [dP_out, dQ_out, dP_in, dQ_in, dd] = run.call(
        grads[0].contiguous(), saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], saved[7],
        sizes_of(context));
    return {dP_out, dQ_out, dP_in, dQ_in, Tensor(), dd, Tensor()};
  }
};

struct ThinRotation : Function<ThinRotation> {
  static Tensor forward(
      AutogradContext* context, const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K,
      const OptionalTensor& offset, bool inverse, bool keep_output) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run = op<Tensor(
        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, bool, bool)>(
        "lorsa::thin_rotation");
    Tensor y = run.call(x, P, Q, K, offset, inverse, keep_output);
    context->save_for_backward({keep_output ? y : x, P, Q, K, or_none(offset)});
    context->saved_data["inverse"] = inverse;
    context->saved_data["kept_output"] = keep_output;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    refuse_second_derivative();
    const variable_list saved = saved_by_rotation(context);
    static const auto run = op<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, bool, bool)>(
        "lorsa::thin_rotation_backward");
    auto [dx, dP, dQ, dK, doffset] = run.call(
        grads[0].contiguous(), saved[0], saved[1], saved[2], saved[3], optional(saved[4]),
        context->saved_data["inverse"].toBool(), context->saved_data["kept_output"].toBool());
    if (saved[4].defined()) doffset = doffset.to(saved[4].scalar_type());
    return {dx, dP, dQ, dK, saved[4].defined() ? doffset : Tensor(), Tensor(), Tensor()};
  }
};

struct SpectralLinear : Function<SpectralLinear> {
  static variable_list forward(
      AutogradContext* context, const OptionalTensor& base, const Tensor& x, const Tensor& U, const Tensor& core,
      const Tensor& V, const OptionalTensor& left, const OptionalTensor& right) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run = op<std::tuple<Tensor, Tensor>(
        const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
        const OptionalTensor&)>("lorsa::spectral_linear");
    auto [out, z] = run.call(base, x, U, core, V, left, right);
    context->save_for_backward({z, right.has_value() ? x : Tensor(), U, core, V, or_none(left), or_none(right)});
    context->saved_data["need_x"] = x.requires_grad();
    context->saved_data["base"] = base.has_value();
    context->mark_non_differentiable({z});
    return {out, z};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    refuse_second_derivative();
    const variable_list saved = context->get_saved_variables();
    static const auto run = op<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
        const OptionalTensor&, const OptionalTensor&, bool)>("lorsa::spectral_linear_backward");
    const bool need_x = context->saved_data["need_x"].toBool();
    auto [dx, dcore, dleft, dright] = run.call(
        grads[0].contiguous(), saved[0], optional(saved[1]), saved[2], saved[3], saved[4], optional(saved[5]),
        optional(saved[6]), need_x);
    const bool sides = saved[5].defined();
    return {
        context->saved_data["base"].toBool() ? grads[0] : Tensor(), need_x ? dx : Tensor(), Tensor(), dcore, Tensor(),
        sides ? dleft : Tensor(), sides ? dright : Tensor()};
  }
};

Tensor rotation_core_autograd(const Tensor& P, const Tensor& Q, IntArrayRef sizes) {
  return RotationCore::apply(P, Q, sizes);
}

std::tuple<Tensor, Tensor, Tensor> subspace_core_autograd(
    const Tensor& P_out, const Tensor& Q_out, const Tensor& P_in, const Tensor& Q_in, const Tensor& s, const Tensor& d,
    IntArrayRef sizes) {
  const variable_list result = SubspaceCore::apply(P_out, Q_out, P_in, Q_in, s, d, sizes);
  return {result[0], result[1], result[2]};
}

Tensor thin_rotation_autograd(
    const Tensor& x, const Tensor& P, const Tensor& Q, const Tensor& K, const OptionalTensor& offset, bool inverse,
    bool keep_output) {
  return ThinRotation::apply(x, P, Q, K, offset, inverse, keep_output);
}

std::tuple<Tensor, Tensor> spectral_linear_autograd(
    const OptionalTensor& base, const Tensor& x, const Tensor& U, const Tensor& core, const Tensor& V,
    const OptionalTensor& left, const OptionalTensor& right) {
  const variable_list result = SpectralLinear::apply(base, x, U, core, V, left, right);
  return {result[0], result[1]};
}

}  // namespace
}  // namespace lorsa

TORCH_LIBRARY_IMPL(lorsa, Autograd, m) {
  m.impl("rotation_core", &lorsa::rotation_core_autograd);
  m.impl("subspace_core", &lorsa::subspace_core_autograd);
  m.impl("thin_rotation", &lorsa::thin_rotation_autograd);
  m.impl("spectral_linear", &lorsa::spectral_linear_autograd);
}
