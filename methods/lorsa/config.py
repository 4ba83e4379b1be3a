"""What a LoRSA adapter is made of: every field, its range, and what it trades."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig

from lorsa.methods.errors import MethodError

PEFT_TYPE = "LORSA"
PREFIX = "lorsa_"  # of the names of all that an adapter adds
SELECTIONS = ("sensitivity", "fisher", "principal", "minor", "random")
CALIBRATED = ("sensitivity", "fisher")


@dataclass
class LorsaConfig(PeftConfig):
    """Configuration of LoRSA, Low-Rank Spectral Adaptation.

    For a weight W (m x n) = U diag(s) V^T and a set S of k selected components, three forms:

    - `space="subspace"`: W' = W + U_S (R_out diag(s_S + d) R_in^T - diag(s_S)) V_S^T with rotations of R^k.
      4 k r + k parameters, whatever the size of the layer.
    - `space="ambient", rotate="selected"`: the selected singular vectors turn within R^m and R^n,
      W' = W + (R_out U_S) diag(s_S + d) (R_in V_S)^T - U_S diag(s_S) V_S^T. 2 r (m + n) + k parameters.
    - `space="ambient", rotate="all"`: every singular vector turns and the selected values change,
      W' = R_out (W + U_S diag(d) V_S^T) R_in^T. 2 r (m + n) + k parameters, and the cheapest in time.

    Each R = cayley(A), A = P Q^T - Q P^T with P, Q of rank r, or in ambient space with `rotation="linear"` the first
    two terms of its series, R = I + A. In a plane where A is [[0, -w], [w, 0]] the one turns by 2 atan(w/2) and keeps
    all lengths, so that with d = 0 the singular values stay and |W' - W| is bounded; the other turns by atan(w) and
    stretches by sqrt(1 + w^2), without a bound. With r = 0 nothing turns and only the singular values train.

    Args:
        target_modules: names (list) or regex (string) of the linear modules to adapt, or `"all-linear"`; as in LoRA.
        exclude_modules: names or regex of modules to leave alone.
        k: components selected per module, 1 <= k <= min(m, n). With `allocation="global"`, the mean over modules.
        r: rank of P and Q, 1 <= r <= half the dimension that is rotated; with `space="subspace"` also 0.
        budget: the most parameters that the adapter may have, in percent of the model's, 0 < budget <= 100; a
            classification head that is trained besides is not counted. It wins over k and r: when the adapter is made
            they are replaced by the largest that fit, see `fit_budget`; r = 0 stays 0, and in ambient form k is only
            ever lowered. U_S and V_S, k (m + n) numbers per module, are stored with the adapter and not counted.
        space: `"subspace"` or `"ambient"`.
        rotate: `"selected"` or `"all"`; `"all"` needs `space="ambient"`.
        rotation: `"cayley"` or `"linear"`; `"linear"` needs `space="ambient"`.
        selection: the rule that ranks components. `"sensitivity"` and `"fisher"` need gradients, see
            `select_components`; `"principal"`, `"minor"` and `"random"` need nothing.
        allocation: `"layer"` gives each module k components, `"global"` the model k times the number of modules.
        components: what was selected, {module name: indices}; filled in by the selection, or given to choose by hand.
            From then on the config belongs to the model: for another one make another.
        seed: of the random selection and of Q's initial directions.
        modules_to_save: modules trained and saved whole, besides the adapter (the classification head).
        layers_to_transform: indices of the layers to adapt, all by default; as in LoRA.
        layers_pattern: name of the list that these indices count in, where PEFT cannot tell.
        factors: `"compute"` takes the SVD of the base weights when the adapter is created; `"saved"`, written with a
            saved adapter, leaves U_S, s_S and V_S to be read from it.
    """

    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    k: int = field(default=64)
    r: int = field(default=1)
    budget: float | None = field(default=None)
    space: str = field(default="ambient")
    rotate: str = field(default="all")
    rotation: str = field(default="cayley")
    selection: str = field(default="principal")
    allocation: str = field(default="layer")
    components: dict[str, list[int]] | None = field(default=None)
    seed: int = field(default=0)
    modules_to_save: list[str] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    factors: str = field(default="compute")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        for name, allowed in (
            ("space", ("subspace", "ambient")),
            ("rotate", ("selected", "all")),
            ("rotation", ("cayley", "linear")),
            ("selection", SELECTIONS),
            ("allocation", ("layer", "global")),
            ("factors", ("compute", "saved")),
        ):
            if getattr(self, name) not in allowed:
                raise MethodError(f"LoRSA: {name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        for name, least in (("k", 1), ("r", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise MethodError(f"LoRSA: {name}={value!r} must be an integer of at least {least}.")
        if self.budget is not None and not (isinstance(self.budget, (int, float)) and 0 < self.budget <= 100):
            raise MethodError(f"LoRSA: budget={self.budget!r} must be a percentage above 0 and up to 100, or null.")
        if self.space == "ambient" and self.r == 0:
            raise MethodError("LoRSA: r=0 trains singular values alone, which needs space=subspace.")
        if self.space == "subspace" and self.k == 1 and self.r > 0:
            raise MethodError("LoRSA: space=subspace with k=1 has nothing to rotate; it takes k of at least 2, or r=0.")
        if self.space == "subspace" and self.r > self.k // 2:
            raise MethodError(
                f"LoRSA: r={self.r} is more than half of k={self.k}; a rotation of a {self.k}-dimensional subspace "
                f"takes r from 1 to {self.k // 2}."
            )
        if self.space == "subspace" and self.rotate == "all":
            raise MethodError(
                "LoRSA: rotate=all turns every singular vector, which needs space=ambient; in a subspace it is "
                "rotate=selected."
            )
        if self.space == "subspace" and self.rotation == "linear":
            raise MethodError("LoRSA: rotation=linear needs space=ambient; in a subspace it is rotation=cayley.")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, marked so that loading reads the stored factors instead of taking an SVD."""
        factors, self.factors = self.factors, "saved"
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.factors = factors
