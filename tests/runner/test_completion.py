"""The tab key: what both commands answer to a shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorsa.runner.completion import FLAGS, asking_shell, completions
from lorsa.runner.help import help_text


def query(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """Return what `lorsa-run` answers to a shell for a command line up to the cursor."""
    done = subprocess.run(
        [sys.executable, "-m", "lorsa.runner.cli", "-sc", f"query={shell}"],
        cwd=folder, env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines() if shell == "fish" else done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lorsa-run task=c", {"task=cola"}),
        ("lorsa-run tracker=", {"tracker=none", "tracker=tensorboard", "tracker=wandb"}),
        ("lorsa-run method=lora protocol=best_epoch mod", {"model=", "model."}),
        ("lorsa-run method=lora method.config.lora_", {"method.config.lora_alpha=", "method.config.lora_dropout="}),
        ("lorsa-run -m seed=0,1 hydra/launcher=", {"hydra/launcher=slurm", "hydra/launcher=local"}),
        ("lorsa-run -m method=head,lorsa_", {"method=head,lorsa_values", "method=head,lorsa_subspace"}),
        ("lorsa-run --con", {"--config-dir"}),
        ("lorsa-run --cfg j", {"job"}),
    ],
)
def test_lorsa_run_completes_choices_keys_and_flags(tmp_path, line, expected):
    assert expected <= set(query(line, tmp_path))


def test_a_folder_is_left_to_the_shell(tmp_path):
    assert query("lorsa-run --config-dir ", tmp_path) == query("lorsa-run --config-dir mi", tmp_path) == []


@pytest.mark.parametrize("line", ["lorsa-run seed=[ tas", "lorsa-run --nonsense tas", "lorsa-run model.nope=1 model."])
def test_a_command_line_that_is_wrong_so_far_prints_no_error(tmp_path, line):
    query(line, tmp_path)


def test_fish_gets_a_line_for_each(tmp_path):
    assert query("lorsa-run --cfg ", tmp_path, "fish") == ["job", "hydra", "all"]
    assert {"task=cola", "task=sst2"} <= set(query("lorsa-run task=", tmp_path, "fish"))


def test_choices_of_a_folder_of_ones_own_are_completed(tmp_path):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mylora.yaml").write_text("name: mylora\n")
    line = "lorsa-run --config-dir mine -m method="
    assert query(line + "lora,my", tmp_path) == ["method=lora,mylora"]


def test_the_answer_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from lorsa.runner import cli; sys.argv = ['lorsa-run', '-sc', 'query=bash']; cli.main()\n"
        "print({'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules))"
    )
    line = "lorsa-run method=lora met"
    environment = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["method.", "method=", "set()"]


def test_bash_completes_after_installing_as_the_help_says(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    assert 'eval "$(lorsa-run --shell-completion install=bash)"' in help_text([])
    command = tmp_path / "bin" / "lorsa-run"
    command.parent.mkdir()
    main = "import sys; from lorsa.runner.cli import main; sys.argv[0] = 'lorsa-run'; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{main}" "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(lorsa-run --shell-completion install=bash)"
        complete -p lorsa-run
        COMP_LINE="lorsa-run -m task=qn" COMP_POINT=20 COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
    """
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    registered, answer = done.stdout.splitlines()
    assert registered.endswith("lorsa-run")
    assert answer == "task=qnli"


def test_lorsa_completes_commands_and_options(tmp_path):
    def answers(words: str) -> set[str]:
        count = str(len(words.split(" ")) - 1)
        environment = os.environ | {"_LORSA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        code = "import sys; sys.argv = ['lorsa']; from lorsa.runner.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return set(done.stdout.split())

    assert answers("lorsa s") == {"status", "submit-glue", "sync"}
    (tmp_path / "runs" / "1f0c5e8a9b7d6342").mkdir(parents=True)
    (tmp_path / "runs" / "sweeps" / "2026-01-01_00-00-00").mkdir(parents=True)
    assert answers("lorsa sync ") == {"latest", "1f0c5e8a9b7d6342", "2026-01-01_00-00-00"}
    assert answers("lorsa sync 1") == {"1f0c5e8a9b7d6342"}
    assert {"--best", "--fill", "--force"} <= answers("lorsa submit-glue --")
    assert answers("lorsa submit-glue --fill ") == {"most-frequent"}


def test_what_is_left_to_hydra_and_what_is_not():
    groups = {"method": ["lora", "lorsa"]}
    assert completions("lorsa-run ", groups) is None
    assert completions("lorsa-run method=lo", groups) is None
    assert completions("lorsa-run seed=0,", groups) is None
    assert completions("lorsa-run method=lora,", groups) == ["method=lora,lorsa"]
    assert completions("lorsa-run --", groups) == list(FLAGS)
    assert completions("lorsa-run --cfg ", groups) == ["job", "hydra", "all"]
    assert completions("lorsa-run --cfg job ", groups) is None


def test_a_question_is_told_from_a_command_line():
    assert asking_shell(["-sc", "query=fish"]) == "fish"
    assert asking_shell(["-sc", "install=bash"]) is asking_shell(["query=bash"]) is None
