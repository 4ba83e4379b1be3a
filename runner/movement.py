"""How far a trained adapter moved the singular components that it selected, from its saved tensors alone.

In all three forms of LoRSA a selected component s u v^T becomes (s + d) (R_out u) (R_in v)^T, so the same numbers
describe each: d against s, the angles of the two rotations, and the angle by which each singular vector turned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorsa.kernels import rotation_difference, thin_rotation_difference

PARTS = ("d", "P_out", "Q_out", "P_in", "Q_in", "U", "s", "V")
_PREFIX = "base_model.model."  # PEFT's, before the module's name in the base model


@dataclass(frozen=True)
class Movement:
    """What one module's adapter did; all tensors float64, components in the order of their selection.

    Attributes:
        count: K = min(m, n), the components that the (m, n) weight has.
        indices: the k selected ones, counted from the largest singular value, which is 0.
        s: (k,) singular values before training, in the units of the weight.
        d: (k,) their trained change, in the same units.
        rotation_out: (r,) angles of R_out, one per plane that it turns, descending, in degrees from 0 to 180.
        rotation_in: (r,) the same of R_in.
        turn_out: (k,) angles between u_i and R_out u_i, in degrees; none exceeds the largest of `rotation_out`.
        turn_in: (k,) the same of v_i and R_in.
    """

    count: int
    indices: list[int]
    s: Tensor
    d: Tensor
    rotation_out: Tensor
    rotation_in: Tensor
    turn_out: Tensor
    turn_in: Tensor

    @property
    def relative_d(self) -> Tensor:
        """|d| / s, (k,); infinite where a zero singular value was given a size."""
        return torch.where(self.d == 0, 0.0, self.d.abs() / self.s)

    @property
    def change(self) -> Tensor:
        """Frobenius norm of each component's change, |(s + d) (R_out u) (R_in v)^T - s u v^T|, (k,)."""
        left, right = (2 * torch.sin(torch.deg2rad(turn) / 2).square() for turn in (self.turn_out, self.turn_in))
        turned = left + (1 - left) * right  # 1 - cos cos, without cancellation for small angles
        return (self.d.square() + 2 * self.s * (self.s + self.d) * turned).clamp_min(0).sqrt()


def rotation_angles(P: Tensor, Q: Tensor) -> Tensor:
    """Return the angles of R = cayley(P Q^T - Q P^T), one for each of the r planes that it turns.

    A skew-symmetric A has eigenvalues +-i w, and R those of its Cayley transform, (1 + i w/2) / (1 - i w/2) = e^(i t)
    with t = 2 atan(w/2). With [P, Q] = Z T and Z orthonormal, A = Z (T J T^T) Z^T where J = [[0, I], [-I, 0]]: the
    singular values of that 2r x 2r core are the w, in pairs. They are also the eigenvalues of Y^T X in the kernels'
    notation, which is not normal, so that small angles would be lost there.

    Args:
        P: (n, r) with 2r <= n, any floating dtype.
        Q: (n, r).

    Returns:
        (r,) degrees from 0 to 180, descending, float64.
    """
    T = torch.linalg.qr(torch.cat([P, Q], dim=-1).double(), mode="r").R
    first, second = T.chunk(2, dim=-1)
    core = first @ second.mT - second @ first.mT
    return torch.rad2deg(2 * torch.atan(torch.linalg.svdvals(core)[::2] / 2))


def vector_turns(P: Tensor, Q: Tensor, vectors: Tensor | None = None) -> Tensor:
    """Return the angle between x and R x, R = cayley(P Q^T - Q P^T), for each of some vectors.

    Args:
        P: (n, r), any floating dtype.
        Q: (n, r).
        vectors: (n, k), one per column; default, the n unit vectors.

    Returns:
        (k,) degrees from 0 to 180, float64.
    """
    P, Q = P.double(), Q.double()
    if vectors is None:
        difference, length = rotation_difference(P, Q).norm(dim=0), torch.ones(len(P), dtype=torch.float64)
    else:
        rows = vectors.double().mT
        difference, length = thin_rotation_difference(rows, P, Q).norm(dim=1), rows.norm(dim=1)
    # The chord of an angle, not its cosine: a small angle keeps its digits.
    return torch.rad2deg(2 * torch.asin((difference / (2 * length)).clamp(max=1)))


@torch.no_grad()
def adapter_movement(
    tensors: Mapping[str, Tensor], components: Mapping[str, Sequence[int]], space: str
) -> dict[str, Movement]:
    """Return how far a saved adapter moved each module that it adapts.

    Args:
        tensors: what adapter_model.safetensors holds; other tensors than LoRSA's are ignored.
        components: selected indices by module, as in `LorsaConfig.components`; may name modules without tensors.
        space: `LorsaConfig.space`. In "subspace" P and Q rotate R^k, the span of the selected vectors; in "ambient"
            R^m and R^n.

    Returns:
        {module name: movement}, in the order of `tensors`.

    Raises:
        ValueError: there is no LoRSA adapter in `tensors`, or parts of it are missing, misshapen or not finite.
    """
    names = dict.fromkeys(name.rpartition(".lorsa_")[0] for name in tensors if ".lorsa_" in name)
    if not names:
        raise ValueError("LoRSA: no tensor of the adapter is named lorsa_*.")
    movements = {}
    for name in names:
        module = name.removeprefix(_PREFIX)
        missing = [f"lorsa_{part}" for part in PARTS if f"{name}.lorsa_{part}" not in tensors]
        if missing:
            raise ValueError(f"LoRSA: {', '.join(missing)} of {module} is missing.")
        if module not in components:
            raise ValueError(f"LoRSA: no selected components are recorded for {module}.")
        parts = {part: tensors[f"{name}.lorsa_{part}"] for part in PARTS}
        movements[module] = _movement(parts, list(components[module]), space, module)
    return movements


def _movement(parts: Mapping[str, Tensor], indices: list[int], space: str, module: str) -> Movement:
    U, V, k = parts["U"], parts["V"], len(indices)
    (m, n), r = (len(U), len(V)), parts["P_out"].shape[-1]
    rows, columns = (k, k) if space == "subspace" else (m, n)
    shapes = {"d": (k,), "s": (k,), "U": (m, k), "V": (n, k)}
    shapes |= {"P_out": (rows, r), "Q_out": (rows, r), "P_in": (columns, r), "Q_in": (columns, r)}
    for part, shape in shapes.items():
        if parts[part].shape != shape:
            raise ValueError(f"LoRSA: lorsa_{part} of {module} is {tuple(parts[part].shape)} and should be {shape}.")
        if not torch.isfinite(parts[part]).all():
            raise ValueError(f"LoRSA: lorsa_{part} of {module} has NaN or infinite entries.")
    if indices and not 0 <= min(indices) <= max(indices) < min(m, n):
        raise ValueError(f"LoRSA: {module} is {m} x {n} and cannot have the components that are recorded for it.")
    P_out, Q_out, P_in, Q_in = (parts[part] for part in ("P_out", "Q_out", "P_in", "Q_in"))
    vectors = (None, None) if space == "subspace" else (U, V)
    return Movement(
        count=min(m, n),
        indices=indices,
        s=parts["s"].double(),
        d=parts["d"].double(),
        rotation_out=rotation_angles(P_out, Q_out),
        rotation_in=rotation_angles(P_in, Q_in),
        turn_out=vector_turns(P_out, Q_out, vectors[0]),
        turn_in=vector_turns(P_in, Q_in, vectors[1]),
    )
