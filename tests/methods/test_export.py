"""LoRSA as LoRA: exact, as small as it can be, and loaded by PEFT without lorsa."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, FORMS, adapt, batch, build, dense_weight, layers, logits, perturb
from torch import Tensor, nn

from lorsa.methods import LorsaConfig, MethodError
from lorsa.methods.lorsa.export import lorsa_to_lora
from lorsa.methods.lorsa.low_rank import low_rank_difference
from lorsa.methods.targets import is_quantized

every_form = pytest.mark.parametrize("form", FORMS)
BOUNDS = {"subspace": 4, "selected": 8, "all": 8, "linear": 8}  # k; 2k; k + 4r
# Under a global allocation modules get other ranks, and some no components at all.
GLOBAL = {"allocation": "global", "k": 3, "r": 1}
CASES = [(architecture, form, {}) for architecture in ARCHITECTURES for form in FORMS]
CASES += [("llama", form, GLOBAL) for form in FORMS]
CASES += [("bert", "subspace", {"r": 0})]  # no rotations


def trained(architecture: str, form: str, dtype: torch.dtype = torch.float32, **changes: object) -> PeftModel:
    """A model whose adapter and head both moved."""
    model = adapt(build(architecture, dtype), architecture, form, **changes)
    perturb(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter += 0.1
    return model


def two_adapters(head: bool) -> PeftModel:
    of = {"modules_to_save": ["classifier"]} if head else {}
    model = get_peft_model(build("bert"), LorsaConfig(target_modules=["query", "value"], **FORMS["all"], **of))
    other = LorsaConfig(target_modules=["query", "key"], selection="minor", **FORMS["selected"], **of)
    model.add_adapter("other", other)
    perturb(model, adapter="default", seed=1)
    perturb(model, adapter="other", seed=2)
    return model.eval()


@every_form
def test_the_factors_are_the_difference_by_definition(form: str):
    model = trained("llama", form, torch.float64)
    for name, layer in layers(model).items():
        part = low_rank_difference(layer, ["default"], name)
        indices = model.peft_config["default"].components[name.removeprefix("base_model.model.")]
        expected = dense_weight(layer, indices) - layer.base_layer.weight.detach()
        torch.testing.assert_close(part.B @ part.A, expected, rtol=0, atol=1e-12)
        assert part.rank == torch.linalg.matrix_rank(expected, rtol=1e-12) <= BOUNDS[form]
        assert part.cut == 0
        # Twice the same directions are no more of them.
        twice = low_rank_difference(layer, ["default", "default"], name)
        assert twice.rank == part.rank
        torch.testing.assert_close(twice.B @ twice.A, 2 * expected, rtol=0, atol=1e-12)
        assert part.norm == pytest.approx(expected.norm().item())


@every_form
def test_a_cut_rank_is_the_best_of_that_rank(form: str):
    model = trained("bert", form, torch.float64)
    deltas = [layer.get_delta_weight("default") for layer in layers(model).values()]
    for name, layer in layers(model).items():
        part = low_rank_difference(layer, ["default"], name, rank=2)
        U, s, Vh = torch.linalg.svd(layer.get_delta_weight("default"))
        torch.testing.assert_close(part.B @ part.A, (U[:, :2] * s[:2]) @ Vh[:2], rtol=0, atol=1e-10)
    exported = lorsa_to_lora(model, rank=2)
    assert set(exported.ranks.values()) == {2}
    left_out = sum(torch.linalg.svdvals(delta)[2:].square().sum() for delta in deltas)
    total = sum(delta.square().sum() for delta in deltas)
    assert exported.relative_error == pytest.approx((left_out / total).sqrt().item())
    assert lorsa_to_lora(model).relative_error == 0


LOADER = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(1)
folder = {folder!r}
rows = torch.load(folder + "/rows.pt")
results = {{}}
for case in {cases!r}:
    base = AutoModelForSequenceClassification.from_pretrained(f"{{folder}}/{{case}}/base")
    model = PeftModel.from_pretrained(base, f"{{folder}}/{{case}}/lora").eval()
    with torch.no_grad():
        results[case] = model(**rows).logits
assert not [name for name in sys.modules if name.split(".")[0] == "lorsa"]
torch.save(results, folder + "/logits.pt")
"""


def loaded_by_peft_alone(folder: Path, cases: list[str]) -> dict[str, Tensor]:
    torch.save(batch(), folder / "rows.pt")
    script = LOADER.format(folder=str(folder), cases=cases)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)
    return torch.load(folder / "logits.pt")


def test_the_exported_adapter_answers_alike_in_a_process_without_lorsa(tmp_path: Path):
    expected: dict[str, Tensor] = {}
    for architecture, form, changes in CASES:
        case = "-".join([architecture, form, *changes])
        build(architecture).save_pretrained(tmp_path / case / "base")
        model = trained(architecture, form, **changes)
        expected[case] = logits(model)
        assert not torch.allclose(expected[case], logits(build(architecture)), atol=1e-2)
        exported = lorsa_to_lora(model)
        exported.save(tmp_path / case / "lora")
        torch.testing.assert_close(logits(model), expected[case], rtol=0, atol=0)
        if changes is GLOBAL:
            assert exported.config.rank_pattern == exported.config.alpha_pattern != {}
    answers = loaded_by_peft_alone(tmp_path, list(expected))
    for case, values in expected.items():
        torch.testing.assert_close(answers[case], values, rtol=0, atol=1e-5, msg=case)


def test_a_global_allocation_leaves_untouched_modules_out():
    model = trained("llama", "subspace", allocation="global", k=2, r=1)
    components = model.peft_config["default"].components
    untouched = {name for name, indices in components.items() if not indices}
    exported = lorsa_to_lora(model)
    assert untouched and set(exported.config.target_modules) == set(components) - untouched
    assert {name: len(components[name]) for name in exported.ranks} == exported.ranks


def test_deberta_turns_content_and_positions_with_one_projection():
    # The subprocess test has the logits; this is what makes them a test of sharing.
    model = trained("deberta", "all")
    calls: list[tuple[int, ...]] = []
    query = next(layer for name, layer in layers(model).items() if "query_proj" in name)
    query.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    logits(model)
    assert len(calls) == 2 and calls[0] != calls[1]


def test_the_folder_is_a_standard_lora_with_the_head_as_peft_saves_it(tmp_path: Path):
    model = trained("roberta", "all")
    model.save_pretrained(tmp_path / "lorsa")
    lorsa_to_lora(model).save(tmp_path / "lora")
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert set(config) == set(LoraConfig().to_dict())
    assert (config["peft_type"], config["task_type"], config["lora_alpha"]) == ("LORA", "SEQ_CLS", config["r"])
    ours, theirs = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("lora", "lorsa"))
    head = {name for name in theirs if "lorsa_" not in name}
    assert len(head) == 4  # dense and out_proj, weight and bias
    assert {name for name in ours if ".lora_" not in name} == head
    assert all(torch.equal(ours[name], theirs[name]) for name in head)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}


@pytest.mark.parametrize("head", [False, True])
def test_an_adapter_is_exported_by_name(head: bool, tmp_path: Path):
    model = two_adapters(head)
    model.set_adapter("other")
    expected = logits(model)
    model.set_adapter("default")
    exported = lorsa_to_lora(model, "other")
    assert {name.rpartition(".")[2] for name in exported.ranks} == {"query", "key"}
    exported.save(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)


def test_several_active_adapters_add_up_and_merging_changes_nothing(tmp_path: Path):
    model = two_adapters(head=False)
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model)
    model.merge_adapter()
    lorsa_to_lora(model).save(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)


@every_form
def test_an_untrained_adapter_becomes_a_lora_of_zeros(form: str, tmp_path: Path):
    exported = lorsa_to_lora(adapt(build("bert"), "bert", form))
    assert set(exported.ranks.values()) == {0}
    assert exported.relative_error == 0
    exported.save(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(build("bert")))


def test_on_a_base_of_half_precision_the_lora_is_float32(tmp_path: Path):
    model = trained("llama", "all", torch.bfloat16)
    lorsa_to_lora(model).save(tmp_path)
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    loaded = PeftModel.from_pretrained(build("llama", torch.bfloat16), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0.05, atol=0.05)


def test_what_cannot_be_exported_is_refused():
    model = trained("bert", "all")
    with pytest.raises(MethodError, match="no adapter 'mine'; the model has default"):
        lorsa_to_lora(model, "mine")
    with pytest.raises(MethodError, match="rank of at least 1; asked for 0"):
        lorsa_to_lora(model, rank=0)
    lora = get_peft_model(build("bert"), LoraConfig(target_modules=["query"]))
    with pytest.raises(MethodError, match="'default' is LoraConfig; only LoRSA"):
        lorsa_to_lora(lora)
    with torch.no_grad():
        next(iter(layers(model).values())).lorsa_U["default"].fill_(torch.nan)
    with pytest.raises(MethodError, match="NaN or infinite"):
        lorsa_to_lora(model)


class Packed(nn.Linear):
    """Like bitsandbytes' layers: a subclass of `nn.Linear` with its weight in integers."""

    def __init__(self, of: nn.Linear, packed: Tensor):
        super().__init__(of.in_features, of.out_features, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(12, 12, dtype=torch.int8),
        torch.zeros(72, 1, dtype=torch.uint8),
        torch.zeros(72, 1, dtype=torch.bfloat16),  # four bits, stored in another dtype
        torch.zeros(12, 12).to(torch.float8_e4m3fn),
    ],
    ids=lambda packed: str(packed.dtype),
)
def test_a_quantised_base_weight_is_refused(packed: Tensor):
    model = trained("bert", "all")
    layer = next(iter(layers(model).values()))
    assert not is_quantized(layer.base_layer)
    layer.base_layer = Packed(layer.base_layer, packed)
    with pytest.raises(MethodError, match=r"attention\.self\.query is quantised"):
        lorsa_to_lora(model)
