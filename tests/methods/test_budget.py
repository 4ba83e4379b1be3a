"""A share of the model's parameters buys the most k and r that it can; the YAMLs keep to theirs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import ARCHITECTURES, FORMS, batch, build, layers, logits, perturb
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from lorsa.methods import LorsaConfig, MethodError, apply, select_components
from lorsa.methods.lorsa.budget import fit_budget, module_size, resolve_budget

CONF = Path(__file__).resolve().parents[2] / "conf"
SPACES = st.sampled_from(["subspace", "ambient", "values"])
SHAPES = st.lists(st.tuples(st.integers(2, 300), st.integers(2, 300)), min_size=1, max_size=12)
TOTALS = st.integers(1_000, 10_000_000)
BUDGETS = st.decimals("0.0001", "100", places=4).map(float)


def budgeted(budget: float, space: str, k: int = 64) -> LorsaConfig:
    form = {"space": "ambient"} if space == "ambient" else {"space": "subspace", "rotate": "selected"}
    return LorsaConfig(budget=budget, k=max(k, 2), r=0 if space == "values" else 1, **form)


def named(shapes: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"layer.{index}": shape for index, shape in enumerate(shapes)}


def size(shapes: list[tuple[int, int]], k: int, r: int, space: str) -> int:
    """The formulas of README.md."""
    if space == "ambient":
        return sum(2 * r * (m + n) + k for m, n in shapes)
    return sum(4 * k * r + k for _ in shapes)


@given(SHAPES, TOTALS, BUDGETS, SPACES, st.integers(2, 128))
def test_a_fit_is_within_the_budget_and_nothing_larger_is(
    shapes: list[tuple[int, int]], total: int, budget: float, space: str, asked: int
):
    components = min(min(shape) for shape in shapes)

    def fits(k: int, r: int) -> bool:
        return size(shapes, k, r, space) <= Fraction(str(budget)) * total / 100

    config = budgeted(budget, space, asked)
    try:
        k, r = fit_budget(named(shapes), total, config)
    except MethodError:
        least = {"subspace": (2, 1), "ambient": (1, 1), "values": (1, 0)}[space]
        assert not fits(*least)
        return
    assert fits(k, r)
    assert 100 * size(shapes, k, r, space) / total <= budget  # as a report says it
    assert size(shapes, k, r, space) == sum(module_size(shape, k, r, config.space) for shape in shapes)
    if space == "values":
        assert r == 0 and 1 <= k <= components
        assert k == components or not fits(k + 1, 0)
    elif space == "subspace":
        assert 1 <= r <= k // 2 and k <= components
        assert k == components or (r == 1 and not fits(k + 1, 1))
        assert r == k // 2 or not fits(k, r + 1)
    else:
        kept = min(config.k, components)
        assert 1 <= r <= components // 2 and 1 <= k <= kept
        assert k == kept or (r == 1 and not fits(k + 1, 1))
        assert r == components // 2 or not fits(k, r + 1)
    config.k, config.r = k, r
    assert fit_budget(named(shapes), total, config) == (k, r)


@given(SHAPES, TOTALS, BUDGETS, BUDGETS, SPACES)
def test_a_larger_budget_never_buys_less_of_either(
    shapes: list[tuple[int, int]], total: int, one: float, other: float, space: str
):
    def bought(budget: float) -> tuple[int, int]:
        try:
            return fit_budget(named(shapes), total, budgeted(budget, space))
        except MethodError:
            return 0, 0

    (k, r), (more_k, more_r) = bought(min(one, other)), bought(max(one, other))
    assert k <= more_k and r <= more_r


@pytest.mark.parametrize(
    ("space", "budget", "expected"),
    [
        ("subspace", 1.0, (2, 1)),  # 10 parameters per module
        ("subspace", 1.4999, (2, 1)),
        ("subspace", 1.5, (3, 1)),
        ("subspace", 20, (40, 1)),  # all components
        ("subspace", 35.99, (40, 1)),
        ("subspace", 36, (40, 2)),  # then thicker rotations
        ("ambient", 20.1, (1, 1)),  # 200 and k parameters per module
        ("ambient", 23, (30, 1)),
        ("ambient", 40, (30, 1)),
        ("ambient", 43, (30, 2)),  # k is not raised above what was asked for
        ("values", 0.1, (1, 0)),
        ("values", 50, (40, 0)),
    ],
)
def test_what_is_spent_first(space: str, budget: float, expected: tuple[int, int]):
    config = budgeted(budget, space, k=30)
    assert fit_budget({"a": (60, 40), "b": (40, 60)}, 2_000, config) == expected


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        ("ambient", "or use space=subspace with rotate=selected or fewer target modules."),
        ("subspace", "or use r=0 or fewer target modules."),
        ("values", "or use fewer target modules."),
    ],
)
def test_a_budget_below_the_smallest_adapter_is_refused_with_what_each_form_takes(space: str, advice: str):
    shapes = {"a": (60, 40), "b": (40, 61)}
    with pytest.raises(MethodError) as error:
        fit_budget(shapes, 7_000, budgeted(0.02, space))
    assert str(error.value) == (
        "LoRSA: budget=0.02 % of 7,000 parameters is 1, too few for 2 target modules; the smallest budget possible is "
        "5.78 for space=ambient (k=1, r=1), 0.286 for space=subspace (k=2, r=1), 0.0286 for space=subspace with r=0 "
        f"(k=1): raise it, {advice}"
    )
    for form, budget, least in (("ambient", 5.78, (1, 1)), ("subspace", 0.286, (2, 1)), ("values", 0.0286, (1, 0))):
        assert fit_budget(shapes, 7_000, budgeted(budget, form)) == least


def test_a_module_with_nothing_to_rotate_is_refused_by_name():
    for space in ("ambient", "subspace"):
        with pytest.raises(MethodError, match=r"^LoRSA: score \(1 x 40\) has a single component .* target_modules\.$"):
            fit_budget({"a": (40, 60), "score": (1, 40)}, 1_000, budgeted(50, space))
    assert fit_budget({"a": (40, 60), "score": (1, 40)}, 1_000, budgeted(50, "values")) == (1, 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("selection", ["principal", "sensitivity"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapted_model_keeps_to_its_budget(architecture: str, selection: str, form: str):
    of = ARCHITECTURES[architecture]
    targets = [name for name in of.targets if name != "up_proj"]  # with it, not even r=1 of the ambient forms would fit
    config = LorsaConfig(target_modules=targets, selection=selection, **{**FORMS[form], "k": 4, "r": 1}, budget=12.5)
    resolve_budget(build(architecture), config)
    fitted = config.k, config.r
    resolve_budget(build(architecture), config)
    assert (config.k, config.r) == fitted
    model, report = apply(build(architecture), config, of.head, [batch(2)])
    assert (config.k, config.r) == fitted
    shapes = [layer.base_layer.weight.shape for layer in layers(model).values()]
    assert report.adapter_params == size(shapes, *fitted, config.space)  # the head trains besides
    assert 0 < 100 * report.adapter_params / report.total_params <= 12.5
    assert torch.equal(logits(model.eval()), logits(build(architecture)))


@pytest.mark.parametrize("allocation", ["layer", "global"])
def test_allocations_share_out_the_same_budget(allocation: str):
    config = LorsaConfig(
        target_modules=["query", "value"], allocation=allocation, budget=2, space="subspace", rotate="selected"
    )
    report = apply(build("bert"), config, ["classifier"])[1]
    assert sum(map(len, report.components.values())) == 4 * config.k
    assert report.adapter_params <= report.total_params * 2 / 100


def test_a_second_adapter_has_the_budget_of_the_first():
    targets = {"target_modules": ["query"], "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    first, second = (LorsaConfig(**targets, budget=5) for _ in range(2))
    model = get_peft_model(build("bert"), first)
    model.add_adapter("other", second)
    assert (second.k, second.r) == (first.k, first.r)


def test_a_saved_adapter_keeps_its_k_and_r(tmp_path: Path):
    config = LorsaConfig(
        target_modules=["query", "value"], budget=3, k=64, space="subspace", rotate="selected", task_type="SEQ_CLS"
    )
    model = get_peft_model(build("bert"), config).eval()
    perturb(model)
    assert (config.k, config.r) != (64, 1)
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    assert (saved["k"], saved["r"], saved["budget"]) == (config.k, config.r, 3)
    file.write_text(json.dumps({**saved, "budget": 0.001}))  # it would not be enough
    loaded = PeftModel.from_pretrained(build("bert"), str(tmp_path)).eval()
    assert (loaded.peft_config["default"].k, loaded.peft_config["default"].r) == (config.k, config.r)
    assert torch.equal(logits(loaded), logits(model))


def test_components_given_by_hand_keep_k_and_r_and_have_to_fit():
    names = [f"bert.encoder.layer.{index}.attention.self.query" for index in range(2)]
    total = build("bert").num_parameters()
    settings = {"target_modules": ["query"], "components": {names[0]: [0, 1, 5], names[1]: [2]}, "k": 7}
    taken = 2 * 2 * 24 + 4
    enough, short = LorsaConfig(**settings, budget=100 * taken / total), LorsaConfig(**settings, budget=1)
    get_peft_model(build("bert"), enough)
    assert (enough.k, enough.r) == (7, 1)
    with pytest.raises(MethodError, match=r"^LoRSA: the given components take 100 parameters with r=1, and budget=1 %"):
        get_peft_model(build("bert"), short)


def test_tied_weights_count_once():
    """With the embeddings untied, the same share of more parameters."""
    bought = []
    for tied in (True, False):
        config = LlamaConfig(
            **{**ARCHITECTURES["llama"].config.to_dict(), "tie_word_embeddings": tied, "vocab_size": 500}
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        lorsa = LorsaConfig(target_modules=["q_proj"], space="subspace", rotate="selected", budget=0.7)
        resolve_budget(model, lorsa)
        limit = 0.7 / 100 * (sum(of.numel() for _, of in model.named_parameters()))
        assert lorsa.k == limit // 10
        bought.append(lorsa.k)
    assert bought[0] < bought[1]


@pytest.mark.parametrize(("budget", "selection"), [(None, "principal"), (5, "principal"), (5, "sensitivity")])
def test_what_cannot_be_adapted_is_refused_with_a_budget_as_without(budget: float | None, selection: str):
    gpt2 = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=12, n_head=2, vocab_size=30, n_positions=24))
    config = LorsaConfig(target_modules=["c_attn"], budget=budget, selection=selection)
    with pytest.raises(MethodError, match=r"target module transformer\.h\.0\.attn\.c_attn is a Conv1D, not a linear"):
        apply(gpt2, config, ["score"], [batch(2)])
    with pytest.raises(MethodError, match=r"target_modules=\['qq'\] matches no module"):
        select_components(build("bert"), LorsaConfig(target_modules=["qq"], budget=budget))


# Full-size models, without their weights.

SIZES: dict[str, PretrainedConfig] = {
    "llama2_7b": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ),
    "llama2_13b": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, vocab_size=32000
    ),
    "minilm": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "roberta_base": RobertaConfig(vocab_size=50265),
    "smollm2_135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
}


def without_weights(name: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(SIZES[name])


def of_yaml(method: str, model: str, **changes: Any) -> LorsaConfig:
    """The config that conf/method/<method>.yaml describes for conf/model/<model>.yaml.

    A model without weights has nothing to rank components by. Which they are does not change their number, and shared
    out over the model they never bring more parameters than k in each module do.
    """
    composed = OmegaConf.create({"seed": 0, "model": OmegaConf.load(CONF / "model" / f"{model}.yaml")})
    composed.method = OmegaConf.load(CONF / "method" / f"{method}.yaml").config
    fields = OmegaConf.to_container(composed, resolve=True)["method"]
    assert fields.pop("_target_") == "lorsa.methods.LorsaConfig"
    return LorsaConfig(task_type="SEQ_CLS", **{**fields, "selection": "principal", "allocation": "layer", **changes})


def adapter_size(model: nn.Module) -> int:
    return sum(
        of.numel() for name, of in model.named_parameters() if of.requires_grad and "modules_to_save" not in name
    )


@pytest.mark.parametrize(("name", "parameters"), [("llama2_7b", 6.74e9), ("llama2_13b", 13.02e9)])
def test_lorsa_trains_at_most_0_12_percent_of_llama_2(name: str, parameters: float):
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(SIZES[name])
    assert language_model.num_parameters() == pytest.approx(parameters, rel=1e-3)
    model = without_weights(name)
    total = model.num_parameters()
    assert total == language_model.num_parameters() - language_model.lm_head.weight.numel() + model.score.weight.numel()
    adapted = get_peft_model(model, of_yaml("lorsa", name))
    assert len(layers(adapted)) == 4 * SIZES[name].num_hidden_layers
    assert 0 < 100 * adapter_size(adapted) / total <= 0.12


@pytest.mark.parametrize("method", ["lorsa", "lorsa_selected", "lorsa_subspace", "lorsa_values", "lorsa_xs"])
def test_a_budget_of_0_12_percent_of_llama_2_7b_is_spent_to_the_last_step(method: str):
    model = without_weights("llama2_7b")
    total = model.num_parameters()
    config = of_yaml(method, "llama2_7b", budget=0.12)
    resolve_budget(model, config)
    shapes = [(each.out_features, each.in_features) for each in _targets(model, config)]
    assert 100 * size(shapes, config.k, config.r, config.space) / total <= 0.12
    if config.r:
        assert 100 * size(shapes, config.k, config.r + 1, config.space) / total > 0.12
    else:
        assert config.k == 4096  # all there is


def _targets(model: nn.Module, config: LorsaConfig) -> list[nn.Linear]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in config.target_modules]


@pytest.mark.parametrize("name", SIZES)
def test_lorsa_xs_is_at_most_a_tenth_of_lora(name: str):
    config = of_yaml("lorsa_xs", name)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=config.target_modules, r=8)
    small, large = (get_peft_model(without_weights(name), each) for each in (config, lora))
    assert len(layers(small)) == sum(hasattr(module, "lora_A") for module in large.modules()) > 0
    assert 0 < adapter_size(small) <= adapter_size(large) / 10


def test_an_adapter_on_a_model_without_weights_has_no_factors_that_could_pass_for_real_ones():
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["llama"].config)
    adapted = get_peft_model(model, LorsaConfig(target_modules=["q_proj"], k=3))
    assert all(of.is_meta for of in (*adapted.parameters(), *adapted.buffers()) if of.ndim > 1)
