"""Every YAML composes, says what it is, and names commands that work."""

import itertools
import re
from pathlib import Path

import pytest
from commands import lorsa_run_lines, overrides_of
from omegaconf import OmegaConf

from lorsa.runner.compose import compose
from lorsa.runner.method import build_method
from lorsa.runner.validate import check

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
# What a command line must give besides the choice itself.
NEEDED = {
    "data/local": ["data.path=somewhere"],
    "model/hf": ["model.path=gpt2"],
    "method/peft": ["method.config._target_=peft.LoraConfig"],
    "resources/gpu4": ["engine=zero2"],
    "resources/gpu8": ["engine=zero3"],
    "resources/gpu8x2": ["engine=ddp"],
    "experiment/smollm2_3000": ["data.path=somewhere"],
}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_yaml_opens_with_what_it_is_and_commands_that_compose(file):
    text = (CONF / file).read_text()
    lines = re.sub(r"^# @package .*\n", "", text).splitlines()
    assert lines[0].startswith("# ")
    header = "\n".join(itertools.takewhile(lambda line: not line or line.startswith("#"), lines))
    found = lorsa_run_lines(header)
    assert found, "the header shows no lorsa-run command that uses the file"
    group, name = str(file.parent), file.stem
    if group != ".":
        assert any(re.search(rf"\b{group}=\S*\b{name}\b", command) for command in found)
    for command in found:
        for overrides in overrides_of(command):
            needed = [item for item in NEEDED.get(f"{group}/{name}", []) if item.split("=")[0] not in command]
            compose(*overrides, *needed)


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name], ids=str)
def test_every_choice_composes_to_a_valid_job(file):
    choice = f"{file.parent}/{file.stem}"
    cfg = compose(f"{file.parent}={file.stem}", *NEEDED.get(choice, []))
    check(cfg)


@pytest.mark.parametrize("task", TASKS)
def test_every_method_composes_with_every_task(task):
    for method in METHODS:
        cfg = compose(f"task={task}", f"method={method}", *NEEDED.get(f"method/{method}", []))
        check(cfg)
        assert cfg.train.lr == cfg.method.lr
        assert cfg.train.max_length == cfg.task.max_length


@pytest.mark.parametrize("method", METHODS)
def test_every_method_binds_to_the_class_that_it_names(method):
    cfg = compose(f"method={method}", *NEEDED.get(f"method/{method}", []))
    assert build_method(cfg.method) is not None


def test_printing_the_config_shows_every_key():
    cfg = compose()
    text = OmegaConf.to_yaml(cfg)
    for key in ("train:", "head_lr:", "gradient_accumulation:", "dev_fraction:", "runs_dir:", "protocol:"):
        assert key in text
