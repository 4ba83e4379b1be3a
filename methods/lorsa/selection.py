"""Which singular components of which modules are adapted.

`sensitivity` asks what a component would do for the loss. With M = U^T G V, G the gradient of the mean loss over the
calibration rows under a fitted head (the model's own where that is fitted already, else one that fits these rows, see
`fitted_head`), a first-order step along everything that component i brings to the adapter lowers the loss in proportion
to

- M_ii^2, for the singular value,
- (s_j M_ij - s_i M_ji)^2 + (s_i M_ij - s_j M_ji)^2, for the rotations that mix it with component j.

In subspace form the second is summed over all j. In the ambient form that turns selected vectors, component i's turn
towards any other one and leave that where it is. Where every vector turns, the choice decides about values alone.

`fisher` ranks by the mean over rows of the squared gradient of the value alone, the diagonal of the empirical Fisher
information, under the same head. `principal`, `minor` and `random` look at no data.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorsa.methods.errors import MethodError
from lorsa.methods.frozen import frozen_evaluation
from lorsa.methods.head import fitted_head
from lorsa.methods.lorsa.basis import Basis
from lorsa.methods.lorsa.budget import resolve_budget
from lorsa.methods.lorsa.cache import BasisCache, StoredBasis, default_folder
from lorsa.methods.lorsa.config import CALIBRATED, LorsaConfig
from lorsa.methods.lorsa.sensitivity import Batch, components_of, mean_gradients, squared_gradients
from lorsa.methods.targets import is_quantized, target_modules


def target_layers(model: nn.Module, config: LorsaConfig) -> dict[str, nn.Linear]:
    """Return the linear modules that `config` targets, by name.

    Raises:
        MethodError: a target is not `nn.Linear`, is quantised or offloaded, is not called by the module that it is in,
            or nothing matches.
    """
    layers: dict[str, nn.Linear] = {}
    for name, layer in target_modules(model, config).items():
        if not isinstance(layer, nn.Linear):
            raise MethodError(f"LoRSA: the target module {name} is a {type(layer).__name__}, not a linear layer.")
        if is_quantized(layer):
            raise MethodError(
                f"LoRSA: the weight of {name} is quantised ({type(layer).__name__}, {layer.weight.dtype} in a "
                f"{type(layer.weight.data).__name__}); its singular vectors come from the weights themselves, so load "
                "the model without quantisation."
            )
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            raise MethodError(
                f"LoRSA: {name} is the output projection of an nn.MultiheadAttention, which reads its weight and never "
                "calls it: an adapter there would do nothing. Leave it out of target_modules."
            )
        if layer.weight.is_meta and getattr(getattr(layer, "_hf_hook", None), "offload", False):
            raise MethodError(
                f"LoRSA: the weight of {name} is offloaded; its singular vectors come from it, so load the model whole."
            )
        layers[name] = layer
    return layers


class Bases:
    """The full bases of a model's modules, from the cache in `default_folder`, computed where they are not there.

    Args:
        layers: the modules, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        cache = BasisCache(default_folder())
        self.stored: dict[str, StoredBasis] = {name: cache.basis(layer.weight, name) for name, layer in layers.items()}

    def __call__(self, name: str, device: torch.device) -> Basis:
        """Return the full basis of a module: on a CPU as views of the file, elsewhere as a copy."""
        return self.stored[name].load(device if device.type != "cpu" else None)


def select_components(
    model: nn.Module, config: LorsaConfig, batches: Iterable[Batch] | None = None, head_is_fitted: bool = False
) -> dict[str, list[int]]:
    """Choose the components to adapt, and write the choice to `config.components`.

    Args:
        model: the model before `get_peft_model`; left as it was.
        config: says which modules, which rule, and how many components. `modules_to_save` names the head.
        batches: keyword arguments of `model.forward`, with labels: for `sensitivity` and `fisher`. The model runs in
            evaluation mode, so a deterministic model gives a deterministic choice.
        head_is_fitted: look at gradients under the head as it is, in place of one fitted to `batches` alone.

    Returns:
        {module name: ascending indices of the selected components}.

    Raises:
        MethodError: nothing matches, k is larger than a module has components, or batches are missing.
    """
    if config.target_modules is None:
        config.target_modules = _default_targets(model)
    resolve_budget(model, config)
    layers = target_layers(model, config)
    for name, layer in layers.items():
        rank = components_of(layer)
        if config.k > rank:
            raise MethodError(
                f"LoRSA: k={config.k} is more than the {rank} components of {name} ({layer.out_features} x "
                f"{layer.in_features}); the largest k for these targets is "
                f"{min(map(components_of, layers.values()))}."
            )
    if config.selection in CALIBRATED:
        if batches is None:
            raise MethodError(f"LoRSA: selection={config.selection} needs calibration batches with labels.")
        device = next(model.parameters()).device
        rows = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
        if not rows:
            raise MethodError(f"LoRSA: selection={config.selection} got no calibration rows.")
        head = [] if head_is_fitted else config.modules_to_save or []
        components = _by_gradients(model, layers, Bases(layers), config, rows, head)
    else:
        components = _top(_data_free_scores(layers, config), config)
    config.components = components
    return components


def _default_targets(model: nn.Module) -> set[str]:
    """Return what `get_peft_model` takes where no modules are named: those of PEFT's LoRA."""
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    found = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    if found is None:
        raise MethodError(
            f"LoRSA: target_modules is not given, and PEFT has no default for {kind or 'such a model'}; name the "
            "modules to adapt, or 'all-linear'."
        )
    return set(found)


def _by_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    bases: Bases,
    config: LorsaConfig,
    rows: Sequence[Batch],
    head: Sequence[str],
) -> dict[str, list[int]]:
    """Choose by gradients, with the modules of `head` fitted to the rows meanwhile."""
    diagonal = config.rotate == "all" or config.r == 0  # values alone count
    with frozen_evaluation(model), fitted_head(model, head, rows):
        if config.selection == "fisher":
            return _top(squared_gradients(model, layers, bases, rows), config)
        gains = value_gains if diagonal else pair_gains if config.space == "subspace" else own_gains
        scores = mean_gradients(
            model, layers, bases, rows, diagonal, lambda name, M: gains(M, bases.stored[name].s.to(M.device, M.dtype))
        )
    return _top(scores, config)


def value_gains(M: Tensor, s: Tensor) -> Tensor:
    """Return what each component brings by its value alone, (K,), from the diagonal of M, (K,)."""
    return M.square()


def own_gains(M: Tensor, s: Tensor) -> Tensor:
    """Return what each component brings on its own, (K,): its value, and its vectors turned towards any other's.

    The longer side of a weight that is not square has directions outside the span of its singular vectors; turning
    there is not counted.

    Args:
        M: (K, K), the mean gradient in the module's basis.
        s: (K,) singular values.
    """
    value = M.diagonal().square()
    return value + s.square() * (M.square().sum(0) + M.square().sum(1) - 2 * value)


def pair_gains(M: Tensor, s: Tensor) -> Tensor:
    """Return what each component brings by its value and by rotations that mix it with each other one, (K,).

    Arguments as for `own_gains`.
    """
    left, right = M * s, M * s[:, None]  # s_j M_ij and s_i M_ij
    return M.diagonal().square() + (left - left.mT).square().sum(1) + (right - right.mT).square().sum(1)


def _data_free_scores(layers: Mapping[str, nn.Linear], config: LorsaConfig) -> dict[str, Tensor]:
    """Return the score of each component under a rule that needs no gradients, {module name: (K,)}."""
    counts = {name: components_of(layer) for name, layer in layers.items()}
    if config.selection == "random":
        # The seed goes into the checksum: the generator keeps no more than the low 32 bits of what it is given.
        generators = {name: torch.Generator().manual_seed(zlib.crc32(name.encode(), config.seed)) for name in counts}
        return {
            name: torch.rand(count, generator=generators[name], dtype=torch.float64) for name, count in counts.items()
        }
    sign = 1.0 if config.selection == "principal" else -1.0
    if config.allocation == "global":
        return {name: sign * stored.s for name, stored in Bases(layers).stored.items()}
    return {name: sign * torch.arange(count, 0, -1, dtype=torch.float64) for name, count in counts.items()}


def _top(scores: Mapping[str, Tensor], config: LorsaConfig) -> dict[str, list[int]]:
    """Take the highest scores: k in each module, or k on average."""
    if config.allocation == "layer":
        return {name: sorted(score.topk(config.k).indices.tolist()) for name, score in scores.items()}
    pool = torch.cat([score.cpu() for score in scores.values()])
    chosen = torch.zeros(len(pool), dtype=torch.bool)
    chosen[pool.topk(config.k * len(scores)).indices] = True
    parts = chosen.split([len(score) for score in scores.values()])
    return {name: part.nonzero().flatten().tolist() for name, part in zip(scores, parts, strict=True)}
