"""`lorsa export` and `lorsa merge` on whole run directories, and what they refuse."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from sample_result import sample_result
from test_models import embedded_tokenizer, small, write_gguf
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lorsa.methods import apply, save
from lorsa.methods.lorsa.export import LoraExport
from lorsa.runner import app
from lorsa.runner.compose import compose
from lorsa.runner.glue.fingerprint import content_fingerprint
from lorsa.runner.method import build_method
from lorsa.runner.models import load_model, load_tokenizer
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.signature import model_folder, signature

TEXTS = ["the film was good", "the actor in the old film was not good", "a film"]
LORSA = ["method=lorsa", "method.config.k=8", "method.config.selection=principal"]
SUBSPACE = ["method=lorsa_subspace", *LORSA[1:], "method.config.allocation=layer"]


@dataclass
class Run:
    """A finished run, and its trained model's answers to `TEXTS`."""

    path: Path
    logits: torch.Tensor


def roberta(folder: Path) -> list[str]:
    if not folder.exists():
        RobertaForMaskedLM(small(RobertaConfig, pad_token_id=3, max_position_embeddings=64)).save_pretrained(folder)
        embedded_tokenizer().save_pretrained(folder)
    return ["model=roberta_base", f"model.path={folder}"]


def gguf(folder: Path) -> list[str]:
    folder.mkdir()
    model = LlamaForCausalLM(small(LlamaConfig, tie_word_embeddings=False))
    write_gguf(folder / "tiny.gguf", model, embedded_tokenizer())
    return [f"model.path={folder}", "model.gguf_file=tiny.gguf"]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Leave what a finished run leaves, with parameters moved at random instead of trained."""

    def make(*overrides: str) -> Run:
        cfg = compose(f"runs_dir={tmp_path / 'runs'}", *overrides)
        base = load_model(cfg, load_tokenizer(cfg))
        method = build_method(cfg.method)
        model, _ = apply(base.model, method, base.head, total_steps=100)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            logits = model.eval()(**base.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        directory = RunDirectory(cfg.runs_dir, signature(cfg))
        directory.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        save(model, method, directory.adapter)
        result = sample_result(cfg) | {"model_content": content_fingerprint(model_folder(cfg.model.path))}
        directory.write("result.json", json.dumps(result))
        return Run(directory.path, logits)

    return make


@pytest.fixture
def lorsa(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `lorsa ARGUMENTS` in this process; returns what it prints."""

    def command(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["lorsa", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        printed = capsys.readouterr()
        assert not end.value.code, printed.err
        return printed.out

    return command


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must be refused with one sentence and leave nothing; returns the sentence."""

    def command(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["lorsa", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        assert end.value.code == app.EXIT_BAD_INPUT
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("lorsa: ")
        assert sorted(tmp_path.rglob("*")) == before, "something half-written is left"
        return sentence

    return command


LOADER = """
import sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

torch.set_num_threads(1)
results = {{}}

def answer(case, model, folder):
    rows = AutoTokenizer.from_pretrained(folder)({texts!r}, padding=True, return_tensors="pt")
    with torch.no_grad():
        results[case] = model.eval()(**rows).logits

for case in {merged!r}:
    answer(case, AutoModelForSequenceClassification.from_pretrained(case), case)
assert not {{"lorsa", "peft"}} & {{name.split(".")[0] for name in sys.modules}}

from peft import PeftModel

for case, (base, labels) in {exported!r}.items():
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    answer(case, PeftModel.from_pretrained(model, case), base)
assert "lorsa" not in {{name.split(".")[0] for name in sys.modules}}
torch.save(results, "logits.pt")
"""


def test_what_is_written_answers_alike_in_a_process_without_lorsa(make_run, lorsa, tmp_path):
    of_roberta = roberta(tmp_path / "base-roberta")
    merged = {
        "lorsa": make_run(*LORSA),
        "lorsa_subspace": make_run(*of_roberta, *SUBSPACE),
        "gguf": make_run(*gguf(tmp_path / "base-gguf"), *LORSA),
        "lora": make_run(*of_roberta, "method=lora", "task=stsb"),
        "ia3": make_run(*of_roberta, "method=ia3", "task=mnli"),
        "full": make_run(*of_roberta, "method=full"),
        "head": make_run(*of_roberta, "method=head"),
        "bitfit": make_run("method=bitfit"),
    }
    every_module = make_run(*LORSA, "method.config.target_modules=${model.modules.all}")
    exported = {"all-lora": every_module, "subspace-lora": make_run(*of_roberta, *SUBSPACE, "task=mnli")}
    bases = {
        "all-lora": (str(model_folder("embedded:tiny_llama")), 2),
        "subspace-lora": (str(tmp_path / "base-roberta"), 3),
    }
    for case, run in merged.items():
        assert str(tmp_path / case) in lorsa("merge", run.path, tmp_path / case)
    assert "of rank 12 on 28 of 28 modules" in lorsa("export", every_module.path, "--as", "lora", tmp_path / "all-lora")
    assert "of rank 8 on 8 of 8" in lorsa("export", exported["subspace-lora"].path, tmp_path / "subspace-lora")

    script = LOADER.format(texts=TEXTS, merged=list(merged), exported=bases)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    answers = torch.load(tmp_path / "logits.pt")
    for case, run in {**merged, **exported}.items():
        torch.testing.assert_close(answers[case], run.logits, rtol=0, atol=1e-5, msg=case)

    config = json.loads((tmp_path / "ia3" / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert config["label2id"] == {"entailment": 0, "neutral": 1, "contradiction": 2}
    assert json.loads((tmp_path / "lora" / "config.json").read_text())["problem_type"] == "regression"
    assert "quantization_config" not in json.loads((tmp_path / "gguf" / "config.json").read_text())
    for path in (tmp_path / "lora").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644


def test_a_cut_rank_says_its_error_and_force_replaces(make_run, lorsa, refused, tmp_path):
    run, out = make_run(*LORSA), tmp_path / "out"
    lorsa("export", run.path, out)
    assert "exists already; --force replaces it" in refused("export", run.path, out)
    printed = lorsa("export", run.path, out, "--rank", 3, "--force")
    assert "of rank 3 on 16 of 16 modules" in printed
    assert 0 < float(printed.strip().rpartition(" ")[2]) < 1
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_model_of_half_precision_is_written_in_its_own_dtype(make_run, lorsa, tmp_path):
    run = make_run(*LORSA, "model.dtype=bfloat16")
    lorsa("merge", run.path, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits.float(), run.logits.float(), rtol=0.05, atol=0.05)


def test_a_run_of_another_engine_and_tracker_is_read_back_by_one_process_without_either(
    make_run, lorsa, tmp_path, monkeypatch
):
    run = make_run(*LORSA)
    trained = compose("engine=zero3", "engine.precision=bf16", "resources=gpu8", "tracker=wandb", *LORSA)
    trained.runs_dir = str(tmp_path / "runs")
    (run.path / "config.yaml").write_text(OmegaConf.to_yaml(trained, resolve=True))
    monkeypatch.setattr("lorsa.runner.validate.find_spec", lambda name: None)
    monkeypatch.setattr("lorsa.runner.device.has_bf16", lambda device: False)
    lorsa("export", run.path, tmp_path / "lora")
    lorsa("merge", run.path, tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, run.logits, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_or_merged_is_refused(make_run, refused, tmp_path):
    out = tmp_path / "out"
    sentence = refused("export", make_run("method=full").path, out)
    assert "method=full" in sentence and "use lorsa merge" in sentence
    run = make_run("method=lora")
    sentence = refused("export", run.path, out)
    assert "method=lora is PEFT's" in sentence and str(run.path / "adapter") in sentence
    lily = ["method=peft", "method.config._target_=peft.LilyConfig", "+method.config.r=4"]
    assert "cannot merge Lily: This method is not supported" in refused("merge", make_run(*lily).path, out)


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_run_that_is_not_there_or_not_finished_is_refused(make_run, refused, tmp_path, command):
    run, out = make_run(*LORSA), tmp_path / "out"
    assert f"the nearest is {run.path}." in refused(command, run.path.with_name(run.path.name[:-2]), out)
    assert f"the nearest is {run.path}." in refused(command, run.path.parent, out)
    assert "holds no finished run" in refused(command, tmp_path / "nothing" / "here", out)
    (run.path / "result.json").unlink()
    RunDirectory(str(run.path.parent), run.path.name).report("interrupted")
    assert "not finished (state: interrupted)" in refused(command, run.path, out)


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_base_model_that_has_changed_since_is_refused(make_run, refused, tmp_path, command):
    base = tmp_path / "base"
    run = make_run(*LORSA, *roberta(base))
    weights = base / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert f"{base} is not the model that {run.path} was trained on" in refused(command, run.path, tmp_path / "out")


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_damaged_run_is_refused(make_run, refused, tmp_path, command):
    run, out = make_run(*LORSA), tmp_path / "out"
    weights = run.path / "adapter" / "adapter_model.safetensors"
    whole = load_file(weights)

    def refusal(file: Path, content: bytes) -> str:
        before = file.read_bytes()
        file.write_bytes(content)
        try:
            return refused(command, run.path, out)
        finally:
            file.write_bytes(before)

    assert "adapter is damaged" in refusal(weights, weights.read_bytes()[:-100])
    for part in ("lorsa_P_in", "lorsa_U", "score"):
        save_file({name: tensor for name, tensor in whole.items() if part not in name}, tmp_path / "part")
        sentence = refusal(weights, (tmp_path / "part").read_bytes())
        assert "adapter is damaged" in sentence and part in sentence
    assert "adapter is damaged" in refusal(run.path / "adapter" / "adapter_config.json", b"{")
    assert "config.yaml is missing or damaged" in refusal(run.path / "config.yaml", b"model: [")
    assert "result.json is damaged" in refusal(run.path / "result.json", b"{")
    cfg = (run.path / "config.yaml").read_text().replace("embedded:tiny_llama", "models/gone")
    assert "models/gone, which is not here" in refusal(run.path / "config.yaml", cfg.encode())


def test_parameters_that_are_missing_from_a_full_run_are_noticed(make_run, refused, tmp_path):
    run = make_run(*roberta(tmp_path / "roberta"), "method=bitfit")
    weights = run.path / "adapter" / "selected_parameters.safetensors"
    first, *others = load_file(weights).items()
    save_file(dict(others), weights)
    sentence = refused("merge", run.path, tmp_path / "out")
    assert "adapter is damaged" in sentence and first[0] in sentence


def test_force_replaces_nothing_but_models_and_adapters(make_run, refused, tmp_path):
    of_roberta = roberta(tmp_path / "roberta")
    run = make_run(*of_roberta, *LORSA)
    other = tmp_path / "work"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "is no model or adapter folder" in refused("merge", run.path, other, "--force")
    for command, out in (
        ("export", run.path / "adapter"),
        ("export", run.path / "new"),
        ("merge", run.path.parent),
        ("merge", tmp_path / "roberta"),
    ):
        assert "choose another place" in refused(command, run.path, out, "--force")
    assert (other / "notes.txt").read_text() == "mine"


def test_a_full_disk_or_an_interrupt_leaves_what_was_there(make_run, lorsa, refused, tmp_path, monkeypatch):
    run, out = make_run(*LORSA), tmp_path / "out"
    lorsa("export", run.path, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    write = LoraExport.save

    def full(export: LoraExport, folder: Path) -> None:
        write(export, folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LoraExport, "save", full)
        assert f"Cannot write {out}: No space left on device" in refused("export", run.path, out, "--force")

    def interrupted(export: LoraExport, folder: Path) -> None:
        write(export, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LoraExport, "save", interrupted)
        patch.setattr(sys, "argv", ["lorsa", "export", str(run.path), str(out), "--force"])
        with pytest.raises(SystemExit) as end:
            app.main()
    assert end.value.code == 130
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_help_loads_nothing_heavy_and_has_an_example_per_command(tmp_path):
    code = (
        "import sys; from lorsa.runner import app; sys.argv = ['lorsa', '--help']\n"
        "try: app.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'transformers', 'peft', 'omegaconf', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")
    assert "Exit codes: 0 done" in done.stdout and "--install-completion" in done.stdout
    for command in app.app.registered_commands:
        name = command.name or command.callback.__name__
        assert name in done.stdout
        assert f"lorsa {name} " in " ".join((command.epilog or command.callback.__doc__).split())


def test_what_is_written_has_a_model_card_of_the_run(make_run, lorsa, tmp_path):
    run = make_run(*LORSA)
    lorsa("merge", run.path, tmp_path / "merged")
    lorsa("export", run.path, tmp_path / "lora")
    for folder, library in (("merged", "transformers"), ("lora", "peft")):
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert card.data.library_name == library
        assert card.data.model_name == "tiny_llama-lorsa-sst2-seed0"
        assert "**Demo data, not GLUE.**" in card.text
    lorsa("export", run.path, tmp_path / "cut", "--rank", 2)
    assert ModelCard.load(tmp_path / "cut" / "README.md").data.eval_results is None


def test_logs_are_also_a_document(lorsa, tmp_path):
    directory = RunDirectory(str(tmp_path), "0123456789abcdef")
    directory.write("logs/output.log", "one\ntwo\nthree\n")
    directory.report("done")
    printed = lorsa("logs", "0123", "--runs-dir", tmp_path, "--tail", 2, "--json")
    assert json.loads(printed) == {
        "run": "0123456789abcdef",
        "rank": 0,
        "file": str(directory.path / "logs" / "output.log"),
        "lines": ["two", "three"],
    }
