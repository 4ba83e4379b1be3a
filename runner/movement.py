"""How far a trained adapter moved the singular components that it selected, from its saved tensors alone.

In all three forms of LoRSA a selected component s u v^T becomes (s + d) (R_out u) (R_in v)^T, so the same numbers
describe each: d against s, the angles of the two rotations, and the angle by which each singular vector turned. Where
R = I + A (`rotation="linear"`) a vector that turns by t also grows, by 1 / cos t: A x is orthogonal to x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Not PyTorch, which takes longer to import than a report takes.
import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize

Array = NDArray[np.float64]

PARTS = ("d", "P_out", "Q_out", "P_in", "Q_in", "U", "s", "V")
_PREFIX = "base_model.model."  # PEFT's, before the module's name in the base model
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Movement:
    """What one module's adapter did; all arrays float64, components in the order of their selection.

    Attributes:
        count: K = min(m, n), the components that the (m, n) weight has.
        indices: the k selected ones, counted from the largest singular value, which is 0.
        s: (k,) singular values before training, in the units of the weight.
        d: (k,) their trained change, in the same units.
        rotation_out: (r,) angles of R_out, one per plane that it turns, descending, in degrees from 0 to 180.
        rotation_in: (r,) the same of R_in.
        turn_out: (k,) angles between u_i and R_out u_i, in degrees; none exceeds the largest of `rotation_out`.
        turn_in: (k,) the same of v_i and R_in.
        linear: R is I + A, no rotation.
    """

    count: int
    indices: list[int]
    s: Array
    d: Array
    rotation_out: Array
    rotation_in: Array
    turn_out: Array
    turn_in: Array
    linear: bool = False

    @property
    def relative_d(self) -> Array:
        """|d| / s, (k,); infinite where a zero singular value was given a size."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.d == 0, 0.0, np.abs(self.d) / self.s)

    @property
    def change(self) -> Array:
        """Frobenius norm of each component's change, |(s + d) (R_out u) (R_in v)^T - s u v^T|, (k,)."""
        if self.linear:
            grown = [np.tan(np.deg2rad(turn)) ** 2 for turn in (self.turn_out, self.turn_in)]  # of the squared length
            growth = grown[0] + grown[1] + grown[0] * grown[1]
            of_linear: Array = np.sqrt(self.d**2 + (self.s + self.d) ** 2 * growth)
            return of_linear
        left, right = (2 * np.sin(np.deg2rad(turn) / 2) ** 2 for turn in (self.turn_out, self.turn_in))
        turned = left + (1 - left) * right  # 1 - cos cos, without cancellation for small angles
        change: Array = np.sqrt(np.maximum(self.d**2 + 2 * self.s * (self.s + self.d) * turned, 0))
        return change


def rotation_angles(P: Array, Q: Array, linear: bool = False) -> Array:
    """Return the angles of R = cayley(A), or I + A, A = P Q^T - Q P^T, one for each of the r planes that it turns.

    A skew-symmetric A has eigenvalues +-i w, and R those of its Cayley transform, (1 + i w/2) / (1 - i w/2) = e^(i t)
    with t = 2 atan(w/2); I + A has 1 + i w, with t = atan(w). With [P, Q] = Z T and Z orthonormal, A = Z (T J T^T) Z^T
    where J = [[0, I], [-I, 0]]: the singular values of that 2r x 2r core are the w, in pairs. They are also the
    eigenvalues of Y^T X in the kernels' notation, which is not normal, so that small angles would be lost there.

    Args:
        P: (n, r) with 2r <= n.
        Q: (n, r).
        linear: R = I + A.

    Returns:
        (r,) degrees from 0 to 180, descending.
    """
    first, second = np.hsplit(np.linalg.qr(np.hstack([P, Q]), mode="r"), 2)
    core = first @ second.T - second @ first.T
    w = np.linalg.svd(core, compute_uv=False)[::2]
    angles: Array = np.rad2deg(np.arctan(w) if linear else 2 * np.arctan(w / 2))
    return angles


def vector_turns(P: Array, Q: Array, vectors: Array | None = None, linear: bool = False) -> Array:
    """Return the angle between x and R x, R = cayley(A) or I + A, A = P Q^T - Q P^T, for each of some vectors.

    Args:
        P: (n, r).
        Q: (n, r).
        vectors: (n, k), one per column; default, the n unit vectors.
        linear: R = I + A.

    Returns:
        (k,) degrees from 0 to 180.
    """
    x = np.eye(len(P)) if vectors is None else vectors
    # R - I = X (I - Y^T X / 2)^-1 Y^T with X = [P, Q] and Y = [Q, -P], the identity of Woodbury.
    X, Y = np.hstack([P, Q]), np.hstack([Q, -P])
    if linear:
        grown: Array = np.rad2deg(np.arctan(np.linalg.norm(X @ (Y.T @ x), axis=0) / np.linalg.norm(x, axis=0)))
        return grown
    difference = X @ np.linalg.solve(np.eye(X.shape[1]) - Y.T @ X / 2, Y.T @ x)
    # The chord of an angle, not its cosine: a small angle keeps its digits.
    chord = np.linalg.norm(difference, axis=0) / np.linalg.norm(x, axis=0)
    turns: Array = np.rad2deg(2 * np.arcsin(np.minimum(chord / 2, 1)))
    return turns


def read_adapter(path: Path) -> dict[str, Array]:
    """Return LoRSA's tensors of an adapter_model.safetensors, in float64, by name.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is no safetensors file.
        ValueError: a tensor is of another dtype than float64, float32, float16 or bfloat16.
    """
    arrays = {}
    views = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    for name, view in sorted(views, key=lambda pair: pair[0]):
        if ".lorsa_" not in name:
            continue
        if view["dtype"] not in _DTYPES:
            raise ValueError(f"LoRSA: {name} is of dtype {view['dtype']}.")
        array = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
        if view["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = array.reshape(view["shape"]).astype(np.float64)
    return arrays


def adapter_movement(
    tensors: Mapping[str, Array], components: Mapping[str, Sequence[int]], space: str, linear: bool = False
) -> dict[str, Movement]:
    """Return how far a saved adapter moved each module that it adapts.

    Args:
        tensors: what `read_adapter` returns.
        components: selected indices by module, as in `LorsaConfig.components`; may name modules without tensors.
        space: `LorsaConfig.space`. In "subspace" P and Q rotate R^k, the span of the selected vectors; in "ambient"
            R^m and R^n.
        linear: `LorsaConfig.rotation` is "linear".

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
        movements[module] = _movement(parts, list(components[module]), space, module, linear)
    return movements


def _movement(parts: Mapping[str, Array], indices: list[int], space: str, module: str, linear: bool) -> Movement:
    U, V, k = parts["U"], parts["V"], len(indices)
    (m, n), r = (len(U), len(V)), parts["P_out"].shape[-1]
    rows, columns = (k, k) if space == "subspace" else (m, n)
    shapes = {"d": (k,), "s": (k,), "U": (m, k), "V": (n, k)}
    shapes |= {"P_out": (rows, r), "Q_out": (rows, r), "P_in": (columns, r), "Q_in": (columns, r)}
    for part, shape in shapes.items():
        if parts[part].shape != shape:
            raise ValueError(f"LoRSA: lorsa_{part} of {module} is {tuple(parts[part].shape)} and should be {shape}.")
        if not np.isfinite(parts[part]).all():
            raise ValueError(f"LoRSA: lorsa_{part} of {module} has NaN or infinite entries.")
    if indices and not 0 <= min(indices) <= max(indices) < min(m, n):
        raise ValueError(f"LoRSA: {module} is {m} x {n} and cannot have the components that are recorded for it.")
    P_out, Q_out, P_in, Q_in = (parts[part] for part in ("P_out", "Q_out", "P_in", "Q_in"))
    vectors = (None, None) if space == "subspace" else (U, V)
    return Movement(
        count=min(m, n),
        indices=indices,
        s=parts["s"],
        d=parts["d"],
        rotation_out=rotation_angles(P_out, Q_out, linear),
        rotation_in=rotation_angles(P_in, Q_in, linear),
        turn_out=vector_turns(P_out, Q_out, vectors[0], linear),
        turn_in=vector_turns(P_in, Q_in, vectors[1], linear),
        linear=linear,
    )
