"""What is installed is all of it, and under names of our own."""

import subprocess
import sys
import tomllib
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy: setuptools leaves its build folder in the source tree.
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (repository / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path), tracked


def test_every_module_config_schema_and_weight_is_in_the_wheel(wheel):
    archive, tracked = wheel
    inside = set(archive.namelist())
    for name in tracked:
        if name.split("/")[0] in ("conf", "kernels", "methods", "runner"):
            assert f"lorsa/{name}" in inside


def test_nothing_is_importable_by_a_bare_name(wheel):
    archive, _ = wheel
    assert {name.split("/")[0] for name in archive.namelist() if "dist-info" not in name} == {"lorsa"}


def test_every_folder_of_a_package_is_declared(repository):
    declared = set(tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    for top in ("kernels", "methods", "runner"):
        for init in (repository / top).rglob("__init__.py"):
            assert "lorsa." + ".".join(init.parent.relative_to(repository).parts) in declared


def test_constraints_pin_everything_that_is_required(repository):
    pinned = {line.split("==")[0].lower() for line in (repository / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = requirement.split(";")[0].split("[")[0]
        for sign in "<>=! ":
            name = name.split(sign)[0]
        assert name.lower() in pinned, requirement
