"""Which components the rules choose, and how a wrong request is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from tiny_models import ARCHITECTURES, adapt, batch, build, layers, logits
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import AutoModelForSequenceClassification, FalconConfig

from lorsa.kernels import dispatch, implementation
from lorsa.methods import LorsaConfig, MethodError, apply, select_components
from lorsa.methods.frozen import frozen_evaluation
from lorsa.methods.head import fitted_head
from lorsa.methods.lorsa import Basis, singular_basis, target_layers
from lorsa.methods.lorsa.selection import Bases, own_gains, pair_gains, value_gains
from lorsa.methods.lorsa.sensitivity import mean_gradients, squared_gradients

TARGETS = ["query", "key", "value", "attention.output.dense"]


def choose(
    selection: str, head_is_fitted: bool = False, **changes: object
) -> tuple[dict[str, list[int]], nn.Module, LorsaConfig]:
    model = build("bert")
    config = LorsaConfig(**{"target_modules": list(TARGETS), "selection": selection, "k": 3, **changes})
    return select_components(model, config, [batch(2)], head_is_fitted), model, config


def test_principal_takes_the_largest_and_minor_the_smallest_values():
    for selection, expected in (("principal", [0, 1, 2]), ("minor", [9, 10, 11])):
        components, _, config = choose(selection)
        assert len(components) == 8
        assert all(indices == expected for indices in components.values())
        assert config.components == components


def test_random_depends_on_the_seed_and_the_module_alone():
    first, second, other = choose("random")[0], choose("random")[0], choose("random", seed=1)[0]
    assert first == second
    assert first != other
    assert len({tuple(indices) for indices in first.values()}) > 1
    assert all(len(set(indices)) == 3 and sorted(indices) == indices for indices in first.values())
    fewer = choose("random", target_modules=["key"])[0]
    assert fewer == {name: indices for name, indices in first.items() if name in fewer}


def best(scores: dict[str, Tensor], allocation: str) -> set[tuple[str, int]]:
    """The three of each module with the highest scores, or as many of the model."""
    flat = sorted((score.item(), name, i) for name, each in scores.items() for i, score in enumerate(each))
    if allocation == "global":
        taken = flat[-3 * len(scores) :]
    else:
        taken = [entry for name in scores for entry in [e for e in flat if e[1] == name][-3:]]
    return {(name, i) for _, name, i in taken}


def pairs(components: dict[str, list[int]]) -> set[tuple[str, int]]:
    return {(name, i) for name, indices in components.items() for i in indices}


@pytest.mark.parametrize("allocation", ["layer", "global"])
@pytest.mark.parametrize("form", ["all", "selected"])
def test_fisher_takes_the_highest_scores(form: str, allocation: str):
    components, model, config = choose("fisher", allocation=allocation, rotate=form)
    found = target_layers(model, config)
    with frozen_evaluation(model):
        scores = squared_gradients(model, found, Bases(found), [batch(2)])
    assert pairs(components) == best(scores, allocation)
    assert sum(map(len, components.values())) == 3 * len(found)


@pytest.mark.parametrize("allocation", ["layer", "global"])
@pytest.mark.parametrize(
    ("form", "gains"),
    [
        ({"rotate": "all"}, value_gains),
        ({"space": "subspace", "rotate": "selected", "r": 0}, value_gains),
        ({"space": "subspace", "rotate": "selected"}, pair_gains),
        ({"rotate": "selected"}, own_gains),
    ],
)
def test_sensitivity_counts_what_a_form_would_train(form: dict[str, object], gains: object, allocation: str):
    components, model, config = choose("sensitivity", allocation=allocation, **form)
    found = target_layers(model, config)
    bases = Bases(found)
    with frozen_evaluation(model):
        gradients = mean_gradients(model, found, bases, [batch(2)], diagonal=False, reduce=lambda _, M: M)
    ranked = {
        rule: best(
            {
                name: rule(M.diagonal() if rule is value_gains else M, bases.stored[name].s)
                for name, M in gradients.items()
            },
            allocation,
        )
        for rule in (value_gains, pair_gains, own_gains)
    }
    assert pairs(components) == ranked[gains]
    assert sum(map(len, components.values())) == 3 * len(found)
    assert len(set(map(frozenset, ranked.values()))) == 3  # each would have chosen others


@pytest.mark.parametrize("selection", ["sensitivity", "fisher"])
def test_gradients_that_are_not_finite_choose_nothing(selection: str):
    model = build("bert")
    with torch.no_grad():
        model.classifier.weight.fill_(torch.inf)
    config = LorsaConfig(target_modules=list(TARGETS), selection=selection, k=3)
    with pytest.raises(MethodError, match=r"gradients of \S+ on the calibration rows are not finite"):
        select_components(model, config, [batch(2)], head_is_fitted=True)
    assert config.components is None


@pytest.mark.parametrize("selection", ["sensitivity", "fisher"])
@pytest.mark.parametrize("already", [False, True])
def test_the_gradients_are_those_under_a_fitted_head(selection: str, already: bool, monkeypatch: pytest.MonkeyPatch):
    fitted = []

    @contextmanager
    def watched(model: nn.Module, head: list[str], batches: list[object]) -> Iterator[None]:
        with fitted_head(model, head, batches):
            fitted.append((list(head), model.classifier.weight.detach().clone()))
            yield

    monkeypatch.setattr("lorsa.methods.lorsa.selection.fitted_head", watched)
    model = choose(selection, already, modules_to_save=["classifier"])[1]
    ((head, weight),) = fitted
    assert head == ([] if already else ["classifier"])
    assert torch.equal(weight, model.classifier.weight) == already


@pytest.mark.parametrize(("selection", "sign"), [("principal", 1), ("minor", -1)])
def test_global_allocation_ranks_values_over_the_model(selection: str, sign: int):
    components, model, config = choose(selection, allocation="global")
    values = [
        (sign * s.item(), name, i)
        for name, layer in target_layers(model, config).items()
        for i, s in enumerate(torch.linalg.svdvals(layer.weight.detach().double()))
    ]
    best = sorted(values)[-3 * len(components) :]
    assert {(name, i) for name, indices in components.items() for i in indices} == {(n, i) for _, n, i in best}


@pytest.mark.parametrize("form", ["subspace", "selected", "all"])
def test_explicit_components_are_taken_in_the_given_order(form: str):
    names = choose("principal", target_modules=["query"])[0]
    components = {name: [7, 0, 3, 11] for name in names}
    model = adapt(build("bert"), "bert", form, target_modules=["query"], components=components)
    assert torch.equal(logits(model), logits(build("bert")))
    for layer in layers(model).values():
        s = torch.linalg.svdvals(layer.base_layer.weight.detach().double())
        torch.testing.assert_close(layer.lorsa_s["default"].double(), s[[7, 0, 3, 11]], rtol=0, atol=1e-6)
        U, V = layer.lorsa_U["default"], layer.lorsa_V["default"]
        torch.testing.assert_close(layer.base_layer.weight @ V, U * layer.lorsa_s["default"])


def test_a_weight_is_decomposed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    decomposed = []

    def counted(weight: Tensor, name: str) -> Basis:
        decomposed.append(name)
        return singular_basis(weight, name)

    monkeypatch.setenv("LORSA_CACHE", str(tmp_path))
    monkeypatch.setattr("lorsa.methods.lorsa.cache.singular_basis", counted)
    for selection in ("sensitivity", "fisher", "principal"):
        config = LorsaConfig(target_modules=["query"], selection=selection, k=3)
        apply(build("bert"), config, ["classifier"], [batch(2)])
    assert decomposed == [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]


@pytest.mark.parametrize("selection", ["sensitivity", "principal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_is_every_linear_module_but_the_head(architecture: str, selection: str):
    model, head = build(architecture), ARCHITECTURES[architecture].head
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    body = {name for name in linear if name.split(".")[0] not in head}
    config = LorsaConfig(target_modules="all-linear", selection=selection, k=2)
    report = apply(model, config, head, [batch(2)])[1]
    assert set(report.components) == body


def test_k_beyond_a_modules_components_is_refused_with_the_largest_that_fits():
    with pytest.raises(
        MethodError, match=r"^LoRSA: k=13 is more than the 12 components of .*query \(12 x 12\); .* 12\.$"
    ):
        choose("principal", k=13)


def test_targets_that_match_nothing_are_refused_with_what_exists():
    with pytest.raises(
        MethodError, match=r"target_modules=\['q_proj'\] matches no module; .*classifier.*query, value\.$"
    ):
        choose("principal", target_modules=["q_proj"])


def test_targets_that_are_not_linear_are_refused_by_type():
    with pytest.raises(MethodError, match=r"target module bert\.embeddings\.LayerNorm is a LayerNorm, not a linear"):
        choose("principal", target_modules=["LayerNorm"])


def test_targets_that_are_quantised_are_refused_by_name():
    model = build("bert")
    layer = model.bert.encoder.layer[0].attention.self.query
    layer.weight = nn.Parameter(torch.zeros(12, 12, dtype=torch.int8), requires_grad=False)
    config = LorsaConfig(target_modules=["query"], k=2)
    message = (
        r"weight of bert\.encoder\.layer\.0\.attention\.self\.query is quantised \(Linear, torch\.int8 in a Tensor\)"
    )
    with pytest.raises(MethodError, match=message):
        get_peft_model(model, config)


class Int8(Tensor):
    """A weight as torchao has them: a tensor of its own class that says it were float32."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Int8:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __repr__(self, **_: object) -> str:
        return "Int8"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        if function is torch.ops.aten.detach.default:
            return cls(arguments[0].codes, arguments[0].scale)
        plain = tree_map(lambda each: each.codes * each.scale if isinstance(each, cls) else each, arguments)
        return function(*plain, **(options or {}))


def test_weights_of_a_quantised_class_are_refused_by_name():
    model = build("bert")
    layer = model.bert.encoder.layer[0].attention.self.query
    scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    codes = (layer.weight.detach() / scale).round().to(torch.int8)
    layer.weight = nn.Parameter(Int8(codes, scale), requires_grad=False)
    assert logits(model).isfinite().all()
    with pytest.raises(MethodError, match=r"query is quantised \(Linear, torch\.float32 in a Int8\)"):
        get_peft_model(model, LorsaConfig(target_modules=["query"], k=2))


def test_without_targets_the_selection_takes_those_of_peft():
    model = build("llama")
    config = LorsaConfig(selection="sensitivity", k=2, modules_to_save=["score"])
    chosen = select_components(model, config, [batch(2)])
    assert {name.rpartition(".")[2] for name in chosen} == {"q_proj", "v_proj"}
    assert set(layers(get_peft_model(build("llama"), LorsaConfig(k=2)))) == {f"base_model.model.{n}" for n in chosen}
    with pytest.raises(MethodError, match=r"target_modules is not given, and PEFT has no default for such a model"):
        select_components(nn.Sequential(nn.Linear(4, 4)), LorsaConfig(k=2))


def test_a_projection_that_is_never_called_is_refused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(12, 2), "last": nn.Linear(12, 3)})
    with pytest.raises(MethodError, match=r"attention\.out_proj is the output projection of an nn\.MultiheadAttention"):
        get_peft_model(model, LorsaConfig(target_modules=["out_proj"], k=2))


def test_an_offloaded_weight_is_refused():
    model = build("llama")
    cpu_offload(model)
    with pytest.raises(MethodError, match=r"the weight of .*q_proj is offloaded; .* load the model whole"):
        get_peft_model(model, LorsaConfig(target_modules=["q_proj"], k=2))


def falcon() -> nn.Module:
    """A model that adds to the result of a linear layer in place."""
    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    torch.manual_seed(0)
    config = FalconConfig(**sizes, pad_token_id=0, parallel_attn=True, new_decoder_architecture=False, alibi=False)
    return AutoModelForSequenceClassification.from_config(config)


def test_a_model_that_overwrites_results_is_calibrated_and_the_way_to_train_it_is_named(monkeypatch):
    config = LorsaConfig(target_modules=["dense_4h_to_h"], selection="sensitivity", k=2, modules_to_save=["score"])
    select_components(falcon(), config, [batch(2)])
    model = get_peft_model(falcon(), config).train()
    compiled = implementation() != "reference (PyTorch)"
    with pytest.raises(RuntimeError, match="LORSA_KERNELS=reference") if compiled else nullcontext():
        model(**batch()).loss.backward()
    monkeypatch.setattr(dispatch, "_compiled", {"cpu": False})
    model(**batch()).loss.backward()
    assert all(p.grad.isfinite().all() for n, p in model.named_parameters() if p.requires_grad and "lorsa_" in n)


@pytest.mark.parametrize("selection", ["sensitivity", "fisher"])
def test_gradient_rules_without_calibration_rows_are_refused(selection: str):
    config = LorsaConfig(target_modules=["query"], selection=selection, k=2)
    with pytest.raises(MethodError, match=rf"selection={selection} needs calibration batches with labels\."):
        select_components(build("bert"), config)
    with pytest.raises(MethodError, match=rf"selection={selection} got no calibration rows\."):
        select_components(build("bert"), config, [])
    with pytest.raises(MethodError, match=r"select_components\(model, config, batches\) before get_peft_model"):
        get_peft_model(build("bert"), config)
    with pytest.raises(MethodError, match=r"select_components\(model, config, batches\) before get_peft_model"):
        adapt(build("bert"), "bert", "all").add_adapter("other", config)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 12], r"is 12 x 12 and has components 0 to 11; asked for 0 to 12\."),
        ([-1, 2], r"has components 0 to 11; asked for -1 to 2\."),
        ([3, 1, 3], r"component 3 .*twice"),
    ],
)
def test_explicit_components_that_do_not_exist_are_refused(indices: list[int], message: str):
    names = choose("principal", target_modules=["query"])[0]
    with pytest.raises(MethodError, match=message):
        adapt(build("bert"), "bert", "all", target_modules=["query"], components=dict.fromkeys(names, indices))


def test_explicit_components_that_leave_out_a_target_are_refused():
    with pytest.raises(MethodError, match=r"no components are given for the target module bert\.encoder\.layer\.1"):
        adapt(
            build("bert"),
            "bert",
            "all",
            target_modules=["query"],
            components={"bert.encoder.layer.0.attention.self.query": [0]},
        )
