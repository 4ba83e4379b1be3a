"""A linear layer with LoRSA adapters on it."""

from __future__ import annotations

import zlib
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lorsa.kernels import (
    implementation,
    rotation_core,
    spectral_linear,
    subspace_core,
    subspace_difference,
    thin_rotation,
    thin_rotation_difference,
)
from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.basis import Basis
from lorsa.methods.lorsa.cache import BasisCache, default_folder
from lorsa.methods.lorsa.config import LorsaConfig
from lorsa.methods.lorsa.cores import SharedCores, linear_core
from lorsa.methods.partitioned import is_partitioned


class LorsaLinear(nn.Module, BaseTunerLayer):
    """`nn.Linear` with any number of LoRSA adapters; with several active, their differences to W add up.

    Per adapter, for a base weight of shape (m, n), with (p, q) = (k, k) in subspace form and (m, n) in ambient form:

    - trained, float32 (float64 on a float64 base): `lorsa_d` (k,), `lorsa_P_out` and `lorsa_Q_out` (p, r),
      `lorsa_P_in` and `lorsa_Q_in` (q, r);
    - fixed, saved with the adapter: `lorsa_U` (m, k) and `lorsa_V` (n, k) in the dtype of W, `lorsa_s` (k,).

    d = 0 and P = 0 make the adapter the exact identity at step 0; Q is orthonormal, so that P has a gradient. Where
    nothing turns (r = 0, or a single component in subspace form) P and Q have no columns, hence no parameters.

    Args:
        base_layer: the layer to adapt.
        adapter_name: name of the first adapter.
        config: its configuration.
        name: name of the layer in the model, for errors and for seeding Q.
    """

    base_layer: nn.Linear
    adapter_layer_names = ("lorsa_d", "lorsa_P_out", "lorsa_Q_out", "lorsa_P_in", "lorsa_Q_in")
    other_param_names = ("lorsa_U", "lorsa_s", "lorsa_V")

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: LorsaConfig, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lorsa_d = nn.ParameterDict()
        self.lorsa_P_out = nn.ParameterDict()
        self.lorsa_Q_out = nn.ParameterDict()
        self.lorsa_P_in = nn.ParameterDict()
        self.lorsa_Q_in = nn.ParameterDict()
        self.lorsa_U = BufferDict(persistent=True)
        self.lorsa_s = BufferDict(persistent=True)
        self.lorsa_V = BufferDict(persistent=True)
        self.form: dict[str, str] = {}
        self.linear: dict[str, bool] = {}  # R = I + A, in place of the rotation
        self.shared_cores = SharedCores()
        self.merged_adapters: list[str] = []
        # W as it was before merging: unmerging by subtraction would not give back the same bits.
        self._pristine_weight: Tensor | None = None
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, name)

    def update_layer(self, adapter_name: str, config: LorsaConfig, name: str) -> None:
        """Add an adapter, the identity until it is trained or loaded.

        Raises:
            MethodError: k or r do not fit this layer.
        """
        weight = self._original_weight()
        m, n = self.out_features, self.in_features
        indices = (config.components or {})[name]
        k = len(indices)
        if indices and not 0 <= min(indices) <= max(indices) < min(m, n):
            raise MethodError(
                f"LoRSA: {name} is {m} x {n} and has components 0 to {min(m, n) - 1}; "
                f"asked for {min(indices)} to {max(indices)}."
            )
        if len(set(indices)) < k:
            twice = next(index for index in indices if indices.count(index) > 1)
            raise MethodError(f"LoRSA: component {twice} of {name} is asked for twice.")
        self.form[adapter_name] = config.space if config.space == "subspace" else config.rotate
        self.linear[adapter_name] = config.rotation == "linear"
        rows, columns = (k, k) if config.space == "subspace" else (m, n)
        # Under a global allocation a layer can get fewer than 2r components: it turns in as many planes as it has.
        r = min(config.r, k // 2) if config.space == "subspace" else config.r
        if 2 * r > min(rows, columns):
            raise MethodError(
                f"LoRSA: r={r} is more than half of the smaller side of {name} ({m} x {n}); "
                f"r goes from 1 to {min(m, n) // 2} there."
            )

        if config.factors == "saved" or weight.is_meta:  # a weight without values has no factors either
            # Not zeros: an adapter whose factors were never loaded must not pass for one that does nothing.
            factors = Basis(*(weight.new_full(shape, torch.nan) for shape in ((m, k), (k,), (n, k))))
        else:
            factors = BasisCache(default_folder()).basis(weight, name).select(indices)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        device = weight.device
        self.lorsa_U[adapter_name] = factors.U.to(device, weight.dtype)
        self.lorsa_s[adapter_name] = factors.s.to(device, dtype)
        self.lorsa_V[adapter_name] = factors.V.to(device, weight.dtype)
        self.lorsa_d[adapter_name] = nn.Parameter(torch.zeros(k, dtype=dtype, device=device))
        for side, size in (("out", rows), ("in", columns)):
            P, Q = torch.zeros(size, r, dtype=dtype), _random_directions(size, r, config.seed, f"{name}.{side}", dtype)
            getattr(self, f"lorsa_P_{side}")[adapter_name] = nn.Parameter(P.to(device))
            getattr(self, f"lorsa_Q_{side}")[adapter_name] = nn.Parameter(Q.to(device))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        implementation(device.type, r)  # chosen now: torch.compile could not trace the choice

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply W', the base weight with the differences of all active adapters, to x (..., n); returns (..., m)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else [a for a in self.active_adapters if a in self.lorsa_d]
        turning = [a for a in active if self.form[a] == "all"]
        if turning:
            # One pass through W serves one turning adapter; each further one costs another, less the common W x.
            result = self._turned_forward(turning[0], x, *args, **kwargs)
            for adapter in turning[1:]:
                result = result + self._turned_forward(adapter, x, *args, **kwargs)
                result = result - self.base_layer(x, *args, **kwargs)
        else:
            result = self.base_layer(x, *args, **kwargs)
        for adapter in active:
            if self.form[adapter] == "subspace":
                result = self._subspace_forward(adapter, result, x)
            elif self.form[adapter] == "selected":
                result = self._selected_forward(adapter, result, x)
        return result

    def _turned_forward(self, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        P_out, Q_out, P_in, Q_in = self._rotations(adapter)
        K_out, K_in = self.cores(adapter)
        x = thin_rotation(x, P_in, Q_in, K_in, inverse=True)
        y = self.base_layer(x, *args, **kwargs)
        U, V = self.lorsa_U[adapter], self.lorsa_V[adapter]
        y = spectral_linear(y, x.to(V.dtype), U, self.lorsa_d[adapter], V)
        bias = self.base_layer.bias
        # What follows the layer mostly keeps its output for the backward pass; then a rotation keeps nothing more: it
        # can be undone.
        undone = not self.linear[adapter]
        return thin_rotation(y, P_out, Q_out, K_out, None if bias is None else bias.to(y.dtype), keep_output=undone)

    def _subspace_forward(self, adapter: str, result: Tensor, x: Tensor) -> Tensor:
        (C,) = self.cores(adapter)
        V = self.lorsa_V[adapter]
        return spectral_linear(result, x.to(V.dtype), self.lorsa_U[adapter], C, V)

    def _selected_forward(self, adapter: str, result: Tensor, x: Tensor) -> Tensor:
        """Add R_out U_S diag(s + d) (R_in V_S)^T x - U_S diag(s) V_S^T x.

        With R_in V_S = V_S + X_in F_in, F_in = K_in Y_in^T V_S, and the same for U_S, that is the spectral update of
        the core [[diag(d), D F_in^T], [F_out D, F_out D F_in^T]], D = diag(s + d), between [U_S, X_out] and
        [V_S, X_in]: zero at step 0, where F X^T is.
        """
        P_out, Q_out, P_in, Q_in = self._rotations(adapter)
        K_out, K_in = self.cores(adapter)
        U, V, s, d = (getattr(self, f"lorsa_{part}")[adapter] for part in ("U", "V", "s", "d"))
        dtype = K_out.dtype  # float32 at least, also where somebody has cast a whole model to less
        with torch.autocast(x.device.type, enabled=False):
            F_out = K_out @ (torch.cat([Q_out, P_out], dim=1).to(U.dtype).mT @ U).to(dtype)
            F_in = K_in @ (torch.cat([Q_in, P_in], dim=1).to(V.dtype).mT @ V).to(dtype)
            value, change = (s + d).to(dtype), d.to(dtype)
            scaled = F_out * value
            near = torch.cat([torch.diag(change), (F_in * value).mT], dim=1)
            core = torch.cat([near, torch.cat([scaled, scaled @ F_in.mT], dim=1)])
            left, right = torch.cat([P_out, -Q_out], dim=1), torch.cat([P_in, -Q_in], dim=1)
        return spectral_linear(result, x.to(V.dtype), U, core, V, left, right)

    def cores(self, adapter: str) -> tuple[Tensor, ...]:
        """Return the small matrices that an adapter's forward pass needs.

        In subspace form C, (k, k), or d, (k,), where nothing turns; else K_out and K_in, (2r, 2r). Those that
        `share_cores` computed for all layers at once, if it did.
        """
        return self.shared_cores.get(adapter) or self.own_cores(adapter)

    def own_cores(self, adapter: str) -> tuple[Tensor, ...]:
        """Return what `cores` does, computed for this layer alone."""
        P_out, Q_out, P_in, Q_in = self._rotations(adapter)
        s, d = self.lorsa_s[adapter], self.lorsa_d[adapter]
        if self.form[adapter] == "subspace":
            if P_out.shape[1] == 0:
                # Nothing is added, but the empty parameters get a gradient: DistributedDataParallel waits for each.
                return (d + sum(side.sum() for side in self._rotations(adapter)),)
            return (subspace_core(P_out, Q_out, P_in, Q_in, s, d, [len(d)]).view(len(d), len(d)),)
        if self.linear[adapter]:
            return linear_core(P_out), linear_core(P_in)
        return rotation_core(P_out, Q_out, [len(P_out)])[0], rotation_core(P_in, Q_in, [len(P_in)])[0]

    def core_parameters(self, adapter: str) -> tuple[Tensor, ...]:
        """Return the trained tensors that `cores` depends on."""
        return (*self._rotations(adapter), self.lorsa_d[adapter])

    def _rotations(self, adapter: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            self.lorsa_P_out[adapter],
            self.lorsa_Q_out[adapter],
            self.lorsa_P_in[adapter],
            self.lorsa_Q_in[adapter],
        )

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return W' - W of one adapter, (m, n), float32, or float64 on a float64 base."""
        dtype = torch.float64 if self.lorsa_s[adapter].dtype == torch.float64 else torch.float32
        P_out, Q_out, P_in, Q_in = (part.to(dtype) for part in self._rotations(adapter))
        U, s, V, d = (getattr(self, f"lorsa_{part}")[adapter].to(dtype) for part in ("U", "s", "V", "d"))
        if self.form[adapter] == "subspace":
            return U @ subspace_difference(P_out, Q_out, P_in, Q_in, s, d) @ V.mT
        K_out, K_in = self.own_cores(adapter)
        if self.form[adapter] == "selected":
            # Rows of U^T are vectors of R^m: turning them is turning the columns of U.
            turned_U = U + thin_rotation_difference(U.mT, P_out, Q_out, K=K_out).mT
            turned_V = V + thin_rotation_difference(V.mT, P_in, Q_in, K=K_in).mT
            return (turned_U * (s + d)) @ turned_V.mT - (U * s) @ V.mT
        W = self._original_weight().to(s.dtype)
        turned = W + (U * d) @ V.mT
        turned = turned + thin_rotation_difference(turned, P_in, Q_in, K=K_in)
        turned = turned + thin_rotation_difference(turned.mT, P_out, Q_out, K=K_out).mT
        return turned - W

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' differences to the base weight, in place.

        Args:
            safe_merge: check the result and leave the weight alone if it is not finite.
            adapter_names: adapters to merge; default, the active ones.

        Raises:
            ValueError: `safe_merge` found NaN or infinite values.
        """
        weight = self._base_weight()
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.lorsa_d:
                continue
            delta = self.get_delta_weight(adapter)
            merged = (weight.data.to(delta.dtype) + delta).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"Merging adapter {adapter} gives NaN or infinite weights; it seems to be broken.")
            if self._pristine_weight is None:
                self._pristine_weight = weight.data
            weight.data = merged
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Put the base weight back, to the bit."""
        if self._pristine_weight is not None:
            weight = self._base_weight()
            weight.data = self._pristine_weight.to(weight.device, weight.dtype)
        self._pristine_weight = None
        self.merged_adapters.clear()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Do as PEFT does, but for dtypes: on a base in half precision, too, what trains stays float32."""
        weight = self._base_weight()
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        for part in (*self.adapter_layer_names, *self.other_param_names):
            tensors = getattr(self, part)
            if adapter_name in tensors and not tensors[adapter_name].is_meta:
                dtype = weight.dtype if part in ("lorsa_U", "lorsa_V") else wide
                tensors[adapter_name] = tensors[adapter_name].to(device or weight.device, dtype)

    def _original_weight(self) -> Tensor:
        weight = self._base_weight()
        if is_partitioned(weight):  # its `data` would not know what it is a part of
            return weight
        return weight.data if self._pristine_weight is None else self._pristine_weight

    def _base_weight(self) -> Tensor:
        return cast(nn.Linear, self.get_base_layer()).weight

    def __getstate__(self) -> dict[str, Any]:
        # Results of a forward pass: neither copied nor pickled with the layer, which autograd would refuse.
        return {**self.__dict__, "shared_cores": SharedCores()}

    def __repr__(self) -> str:
        return "lorsa." + super().__repr__()


def _random_directions(size: int, r: int, seed: int, name: str, dtype: torch.dtype) -> Tensor:
    """Return orthonormal columns (size, r) that depend on the seed and the name alone, not on order or process."""
    # The seed goes into the checksum: the generator keeps no more than the low 32 bits of what it is given.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
    columns = torch.randn(size, r, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(columns)[0].to(dtype)
