"""Commands, paths and make targets in the README exist."""

import re

import pytest
from commands import lorsa_run_lines, overrides_of
from typer.main import get_command

from lorsa.runner.app import app
from lorsa.runner.compose import compose


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text()


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]


def test_every_lorsa_run_line_composes(readme):
    lines = lorsa_run_lines("\n".join(shell_lines(readme)))
    assert lines
    for line in lines:
        for overrides in overrides_of(line):
            compose(*overrides)


def test_every_lorsa_command_takes_the_options_that_are_shown(readme):
    commands = get_command(app).commands
    lines = [line.partition("#")[0].split()[1:] for line in shell_lines(readme) if line.startswith("lorsa ")]
    assert {line[0] for line in lines} == set(commands)
    for name, *words in lines:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, name
        if name == "prefetch":
            compose(*words)


def test_every_make_target_exists(readme, repository):
    makefile = (repository / "Makefile").read_text()
    for line in shell_lines(readme):
        if match := re.match(r"make ([a-z-]+)", line):
            assert re.search(rf"^{match[1]}:", makefile, flags=re.MULTILINE), line


def test_every_script_that_is_named_exists(readme, repository):
    scripts = set(re.findall(r"scripts/\w+\.(?:py|sh)", readme))
    assert scripts
    for script in scripts:
        assert (repository / script).is_file(), script


def test_the_file_tour_names_what_is_there(readme, repository):
    tour = re.search(r"## File tour.*?```\n(.*?)```", readme, flags=re.DOTALL)[1]
    folder = ""
    for line in tour.splitlines():
        name, indent = line.split()[0] if line.strip() else "", len(line) - len(line.lstrip())
        if not name:
            continue
        if indent == 0:
            folder = name if name.endswith("/") else ""
            path = name
        else:
            path = folder + name
        assert (repository / path).exists(), path


def test_the_python_example_runs(readme):
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
