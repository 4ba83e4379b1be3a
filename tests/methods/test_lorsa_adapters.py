"""Several adapters on one model, and adapters on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, FORMS, adapt, batch, build, layers, logits, perturb
from torch import Tensor, nn

from lorsa.methods import LorsaConfig

every_form = pytest.mark.parametrize("form", FORMS)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def two_adapters(form: str, other: str) -> PeftModel:
    # No task type: of a head that trains, which PEFT gives every classification adapter, one alone can be active.
    model = get_peft_model(build("bert"), LorsaConfig(target_modules=["query", "value"], **FORMS[form]))
    config = LorsaConfig(target_modules=["query", "key"], selection="minor", seed=3, **{**FORMS[other], "k": 5})
    model.add_adapter("other", config)
    perturb(model, adapter="default", seed=1)
    perturb(model, adapter="other", seed=2)
    return model.eval()


def perturbed_weights(model: nn.Module, adapters: list[str]) -> dict[str, Tensor]:
    """The base's weights with the sum of some adapters' differences."""
    return {
        name.removeprefix("base_model.model.") + ".weight": layer.base_layer.weight.detach()
        + sum(layer.get_delta_weight(adapter) for adapter in adapters if adapter in layer.lorsa_d)
        for name, layer in layers(model).items()
    }


def with_weights(weights: dict[str, Tensor]) -> Tensor:
    model = build("bert")
    model.load_state_dict(weights, strict=False)
    return logits(model)


@pytest.mark.parametrize(("form", "other"), [("all", "all"), ("all", "subspace"), ("selected", "all")])
def test_adapters_switch_and_add_up(form: str, other: str):
    model = two_adapters(form, other)
    expected = {
        names: with_weights(perturbed_weights(model, list(names)))
        for names in (("default",), ("other",), ("default", "other"))
    }
    assert not torch.allclose(expected[("default",)], expected[("other",)], atol=1e-3)
    for names in expected:
        model.base_model.set_adapter(list(names))
        torch.testing.assert_close(logits(model), expected[names], rtol=1e-4, atol=1e-5)
    for parameter_name, parameter in model.named_parameters():  # both are active now
        assert parameter.requires_grad == ("lorsa_" in parameter_name)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected[("default", "other")], rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("other")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lorsa_" in name and name.endswith(".other")}
    model.delete_adapter("default")
    torch.testing.assert_close(logits(model), expected[("other",)], rtol=1e-4, atol=1e-5)
    assert not any("default" in name for name in model.state_dict())


def test_adding_an_adapter_does_not_change_the_active_one():
    model = adapt(build("bert"), "bert", "all")
    perturb(model)
    before = logits(model)
    model.add_adapter("other", LorsaConfig(target_modules=["query"], k=2, task_type="SEQ_CLS"))
    assert torch.equal(logits(model.eval()), before)
    model.set_adapter("other")
    assert torch.equal(logits(model.eval()), logits(build("bert")))


LOADER = """
import sys
sys.path.insert(0, {helpers!r})
import torch
from lorsa.methods.lorsa import BasisCache
from peft import PeftModel, get_peft_model
from tiny_models import batch, build, logits

def fail(*_):
    raise AssertionError("loading took an SVD")

BasisCache.basis = fail
torch.set_num_threads(1)
results = {{}}
for architecture, form in {cases!r}:
    folder = {folder!r} + f"/{{architecture}}-{{form}}"
    results[f"{{architecture}}-{{form}}"] = logits(PeftModel.from_pretrained(build(architecture), folder).eval())
torch.save(results, {folder!r} + "/logits.pt")
"""


def test_saved_adapters_give_the_same_bits_in_a_new_process_without_an_svd(tmp_path: Path):
    cases = [(architecture, form) for architecture in ARCHITECTURES for form in FORMS]
    expected = {}
    for architecture, form in cases:
        model = adapt(build(architecture), architecture, form, "sensitivity")
        perturb(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter += 0.1
        expected[f"{architecture}-{form}"] = logits(model)
        model.save_pretrained(tmp_path / f"{architecture}-{form}")
        assert model.peft_config["default"].factors == "compute"
        config = json.loads((tmp_path / f"{architecture}-{form}" / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORSA"
        assert config["components"] == model.peft_config["default"].components
    script = LOADER.format(helpers=str(Path(__file__).parent), cases=cases, folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    loaded = torch.load(tmp_path / "logits.pt")
    assert loaded.keys() == expected.keys()
    for case, values in expected.items():
        assert torch.equal(loaded[case], values), case


@every_form
@every_architecture
def test_loading_with_low_memory_or_under_another_name_gives_the_same_bits(
    architecture: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = adapt(build(architecture), architecture, form)
    perturb(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("loading took an SVD")

    monkeypatch.setattr("lorsa.methods.lorsa.cache.BasisCache.basis", fail)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(build(architecture), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
        assert torch.equal(logits(loaded), expected)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    named = PeftModel.from_pretrained(build(architecture), tmp_path, adapter_name="mine", is_trainable=True).eval()
    assert torch.equal(logits(named), expected)
    assert any(name.endswith("lorsa_d.mine") for name, of in named.named_parameters() if of.requires_grad)
    named.load_adapter(tmp_path, "again")
    named.set_adapter("again")
    assert torch.equal(logits(named.eval()), expected)


@every_form
@pytest.mark.parametrize(
    ("saved", "base"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_loading_with_low_memory_keeps_the_dtypes(form: str, saved: torch.dtype, base: torch.dtype, tmp_path: Path):
    # Without a task, hence without the head, which PEFT casts as it likes.
    model = get_peft_model(build("llama", saved), LorsaConfig(target_modules=["q_proj", "down_proj"], **FORMS[form]))
    perturb(model)
    model.save_pretrained(tmp_path)
    plain, low = (
        PeftModel.from_pretrained(build("llama", base), tmp_path, low_cpu_mem_usage=low, is_trainable=True).eval()
        for low in (False, True)
    )
    assert torch.equal(logits(low), logits(plain))
    for (name, one), (_, other) in zip(plain.state_dict().items(), low.state_dict().items(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), name
    for name, parameter in low.named_parameters():
        if "lorsa_" in name:  # in bfloat16 most steps of a small rate would change nothing
            assert parameter.dtype == torch.float32 and parameter.is_leaf and parameter.requires_grad


@every_form
def test_a_loaded_adapter_trains_on_and_saves_again(form: str, tmp_path: Path):
    model = adapt(build("bert"), "bert", form)
    perturb(model)
    model.save_pretrained(tmp_path / "one")
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "one", is_trainable=True)
    trained = [parameter for parameter in loaded.parameters() if parameter.requires_grad]
    assert sum(each.numel() for each in trained) == model.get_nb_trainable_parameters()[0]
    loaded(**batch()).loss.backward()
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.1 * parameter.grad
    loaded.save_pretrained(tmp_path / "two")
    again = PeftModel.from_pretrained(build("bert"), tmp_path / "two").eval()
    assert torch.equal(logits(again), logits(loaded.eval()))
    assert not torch.equal(logits(again), logits(model))


def test_the_file_holds_the_adapter_and_the_head_only(tmp_path: Path):
    model = adapt(build("bert"), "bert", "all")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.split(".")[-1] for name in stored if "lorsa_" in name} == {
        "lorsa_d", "lorsa_P_out", "lorsa_Q_out", "lorsa_P_in", "lorsa_Q_in", "lorsa_U", "lorsa_s", "lorsa_V",
    }  # fmt: skip
    assert {name for name in stored if "lorsa_" not in name} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }


def test_a_file_without_its_factors_is_not_loaded_silently(tmp_path: Path):
    model = adapt(build("bert"), "bert", "all")
    perturb(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "lorsa_U" not in name}, file)
    with pytest.warns(UserWarning, match=r"missing adapter keys.*lorsa_U"):
        PeftModel.from_pretrained(build("bert"), tmp_path)
