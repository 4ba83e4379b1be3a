"""How far an adapter moved its components, against dense rotations and hand-made values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_models import ARCHITECTURES, FORMS, adapt, build, dense_rotation, layers, perturb
from torch import Tensor, nn

from lorsa.methods import LorsaConfig
from lorsa.runner.movement import Array, Movement, adapter_movement, read_adapter, rotation_angles, vector_turns


def pair(n: int, r: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + r)
    P, Q = torch.randn(2, n, r, dtype=torch.float64, generator=generator)
    return scale * P, torch.linalg.qr(Q)[0]


def dense_angles(R: Tensor) -> list[float]:
    """Angles of the eigenvalues of R in the upper half plane, descending, in degrees."""
    angles = torch.rad2deg(torch.linalg.eigvals(R).angle())
    return sorted((angle for angle in angles.tolist() if angle > 1e-9), reverse=True)


def saved_adapter(model: nn.Module, folder: Path) -> dict[str, Array]:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(model).items()}, file)
    return read_adapter(file)


@pytest.mark.parametrize(("n", "r"), [(2, 1), (7, 1), (9, 3), (6, 3), (40, 4)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_rotation_angles_are_those_of_the_dense_rotations_eigenvalues(n, r, scale):
    P, Q = pair(n, r, scale)
    assert rotation_angles(P.numpy(), Q.numpy()).tolist() == pytest.approx(
        dense_angles(dense_rotation(P, Q)), rel=1e-8, abs=1e-8
    )


def test_rotation_angles_belong_to_the_eigenvalues_of_the_kernels_core():
    P, Q = pair(11, 3)
    M = torch.cat([Q, P], dim=1).mT @ torch.cat([P, -Q], dim=1)
    tangents = torch.linalg.eigvals(M / 2)
    assert tangents.real.abs().max() < 1e-12
    expected = torch.rad2deg(2 * tangents.imag.atan()).sort(descending=True).values[:3]
    assert rotation_angles(P.numpy(), Q.numpy()).tolist() == pytest.approx(expected.tolist())


def test_a_plane_that_turns_by_a_known_angle():
    angle = 37.0
    P, Q = torch.zeros(5, 1), torch.zeros(5, 1)
    P[1], Q[3] = 2 * math.tan(math.radians(angle) / 2), 1.0
    assert rotation_angles(P.numpy(), Q.numpy()).tolist() == pytest.approx([angle])
    assert vector_turns(P.numpy(), Q.numpy()).tolist() == pytest.approx([0, angle, 0, angle, 0], abs=1e-5)


def test_angles_too_small_for_a_cosine_keep_their_digits():
    P, Q = pair(30, 2, 1e-10)
    largest = math.degrees(torch.linalg.matrix_norm(P @ Q.mT - Q @ P.mT, 2).item())
    assert rotation_angles(P.numpy(), Q.numpy())[0].item() == pytest.approx(largest, rel=1e-6, abs=0)
    x = torch.randn(30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = math.degrees(((P @ Q.mT - Q @ P.mT) @ x).norm() / x.norm())
    assert vector_turns(P.numpy(), Q.numpy(), x.numpy()).tolist() == pytest.approx([turn], rel=1e-6, abs=0)


@pytest.mark.parametrize("n", [64, 1024])
def test_the_first_update_turns_by_the_rate_times_the_root_of_what_it_turns(n: int):
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(n, n)), LorsaConfig(target_modules=["0"], k=4))
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-3)
    (model(torch.randn(32, n)) * torch.randn(32, n)).sum().backward()
    optimizer.step()
    (layer,) = layers(model).values()
    for side in ("out", "in"):
        P, Q = (getattr(layer, f"lorsa_{part}_{side}")["default"].detach().numpy() for part in "PQ")
        (angle,) = np.radians(rotation_angles(P, Q))
        assert angle == pytest.approx(1e-3 * n**0.5, rel=0.05)


def test_what_was_not_trained_did_not_turn():
    P, Q = pair(12, 2, 0.0)
    assert rotation_angles(P.numpy(), Q.numpy()).tolist() == [0, 0]
    assert vector_turns(P.numpy(), Q.numpy()).tolist() == [0] * 12


def test_without_rotations_there_is_no_angle_and_nothing_turns():
    none = np.zeros((4, 0))
    assert rotation_angles(none, none).shape == (0,)
    assert vector_turns(none, none).tolist() == [0] * 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_every_form_moves_its_components_as_the_definition_says(architecture, form, tmp_path):
    model = adapt(build(architecture), architecture, form, selection="random")
    perturb(model)
    config = model.peft_config["default"]
    movements = adapter_movement(saved_adapter(model, tmp_path), config.components, config.space, form == "linear")
    adapted = {name.removeprefix("base_model.model."): layer for name, layer in layers(model).items()}
    assert movements.keys() == adapted.keys()
    for name, layer in adapted.items():
        moved = movements[name]
        P_out, Q_out, P_in, Q_in, U, s, V, d = (
            getattr(layer, f"lorsa_{part}")["default"].detach().double()
            for part in ("P_out", "Q_out", "P_in", "Q_in", "U", "s", "V", "d")
        )
        R_out, R_in = (dense_rotation(*pair, form == "linear") for pair in ((P_out, Q_out), (P_in, Q_in)))
        turned_U, turned_V = (U @ R_out, V @ R_in) if form == "subspace" else (R_out @ U, R_in @ V)
        assert moved.count == min(layer.out_features, layer.in_features)
        assert moved.indices == config.components[name]
        assert moved.rotation_out.tolist() == pytest.approx(dense_angles(R_out), rel=1e-5)
        assert moved.rotation_in.tolist() == pytest.approx(dense_angles(R_in), rel=1e-5)
        for turn, before, after in ((moved.turn_out, U, turned_U), (moved.turn_in, V, turned_V)):
            cosine = (before * after).sum(0) / (before.norm(dim=0) * after.norm(dim=0))
            assert turn.tolist() == pytest.approx(torch.rad2deg(cosine.acos()).tolist(), rel=1e-4)
        assert moved.turn_out.max() <= moved.rotation_out.max() + 1e-4
        parts = [
            (s + d)[i] * turned_U[:, i : i + 1] @ turned_V[:, i : i + 1].mT
            - s[i] * U[:, i : i + 1] @ V[:, i : i + 1].mT
            for i in range(len(s))
        ]
        assert moved.change.tolist() == pytest.approx([part.norm().item() for part in parts], rel=1e-4)
        assert moved.relative_d.tolist() == pytest.approx((d.abs() / s).tolist())
        if form not in ("all", "linear"):  # where components that were not selected turn, too
            torch.testing.assert_close(sum(parts), layer.get_delta_weight("default").double(), atol=1e-5, rtol=1e-4)


def test_the_bfloat16_factors_of_a_half_precision_base_are_read(tmp_path):
    turns = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = adapt(build("llama", dtype), "llama", "selected")
        perturb(model)
        config = model.peft_config["default"]
        (moved, *_) = adapter_movement(saved_adapter(model, tmp_path), config.components, config.space).values()
        assert moved.turn_out.dtype == np.float64
        turns[dtype] = moved.turn_out
    assert turns[torch.bfloat16].tolist() == pytest.approx(turns[torch.float32].tolist(), rel=0.05)


def movement(s: list[float], d: list[float], turn_out: list[float], turn_in: list[float]) -> Movement:
    s, d, turn_out, turn_in = (np.array(each) for each in (s, d, turn_out, turn_in))
    return Movement(9, list(range(len(s))), s, d, turn_out, turn_in, turn_out, turn_in)


def test_d_against_s_has_its_known_values():
    moved = movement([4.0, 2.0, 0.0, 0.0], [-1.0, 0.5, 0.0, 0.1], [0.0] * 4, [0.0] * 4)
    assert moved.relative_d.tolist() == [0.25, 0.25, 0.0, math.inf]
    assert moved.change.tolist() == pytest.approx([1.0, 0.5, 0.0, 0.1])


def test_the_change_of_a_component_has_its_known_values():
    # Turned by 90 degrees on one side it is orthogonal to itself; by 180 degrees it is minus itself.
    moved = movement([3.0, 3.0, 2.0], [0.0, 1.0, 0.0], [90.0, 90.0, 180.0], [0.0, 0.0, 0.0])
    assert moved.change.tolist() == pytest.approx([3 * math.sqrt(2), 5.0, 4.0])


@pytest.fixture
def saved(tmp_path) -> tuple[dict[str, Array], dict[str, list[int]]]:
    model = adapt(build("llama"), "llama", "selected", target_modules=["q_proj"])
    return saved_adapter(model, tmp_path), model.peft_config["default"].components


NAME = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, part: tensors.clear(), ["lorsa_"]),
        (lambda tensors, part: tensors.pop(part("P_in")), ["lorsa_P_in", NAME, "missing"]),
        (lambda tensors, part: tensors.update({part("d"): np.zeros(3)}), ["lorsa_d", NAME, "(3,)", "(4,)"]),
        (lambda tensors, part: tensors.update({part("Q_in"): np.zeros((12, 1))}), ["lorsa_Q_in", "(12, 1)"]),
        (lambda tensors, part: tensors[part("s")].fill(math.nan), ["lorsa_s", NAME, "NaN"]),
    ],
)
def test_a_damaged_adapter_is_named(saved, change, words):
    tensors, components = saved
    change(tensors, lambda part: f"base_model.model.{NAME}.lorsa_{part}")
    with pytest.raises(ValueError) as error:
        adapter_movement(tensors, components, "ambient")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("indices", "words"), [(None, "no selected components"), ([0, 1, 2, 12], "12 x 12")])
def test_components_that_do_not_fit_the_adapter_are_named(saved, indices, words):
    tensors, components = saved
    if indices is None:
        del components[NAME]
    else:
        components[NAME] = indices
    with pytest.raises(ValueError, match=words) as error:
        adapter_movement(tensors, components, "ambient")
    assert NAME in str(error.value)


def test_the_head_is_no_part_of_the_movement_and_untargeted_components_none(saved):
    tensors, components = saved
    assert not any(ARCHITECTURES["llama"].head[0] in name for name in tensors)
    movements = adapter_movement(tensors, {**components, "model.layers.0.mlp.up_proj": [1]}, "ambient")
    assert sorted(movements) == ["model.layers.0.self_attn.q_proj", NAME]
