"""Build the compiled kernels for this machine; nothing is compiled again when nothing has changed.

    python -m lorsa.kernels.build [--cuda | --no-cuda] [--force]

Needs g++ (or what CXX names), ninja, and for the CUDA kernels a torch with CUDA and an nvcc of the same major version.
TORCH_CUDA_ARCH_LIST says for which GPUs; MAX_JOBS bounds the compilers that run at once. library.py says where the
result lies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lorsa.kernels.library import (
    CSRC,
    LIBRARY,
    NAME,
    NVCC_FLAGS,
    KernelError,
    cache_folder,
    cpu_capability,
    cxx_flags,
    find_key,
    read_sources,
    source_key,
)

FACTS = "build.json"
DAY = 24 * 3600
# Newer GPUs than these compile the PTX when they first run it.
ARCHITECTURES = ("8.0", "9.0+PTX")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a call of `build` did.

    Args:
        path: the library.
        cpu: the instruction set that its C++ is compiled for.
        cuda: the GPU architectures that it has CUDA kernels for; empty without CUDA.
        why_no_cuda: the reason, where there is none.
        seconds: what the call took.
        reused: whether the library was there already.
        warnings: the compiler's warnings, a line each; none are known of a library that was there.
    """

    path: Path
    cpu: str
    cuda: tuple[str, ...]
    why_no_cuda: str
    seconds: float
    reused: bool
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        cuda = f"built for {', '.join(self.cuda)}" if self.cuda else f"not built: {self.why_no_cuda}"
        done = "there already, nothing has changed" if self.reused else f"built in {self.seconds:.0f} s"
        lines = [*self.warnings, f"kernels  {done}", f"  C++    built for {self.cpu}", f"  CUDA   {cuda}"]
        return "\n".join([*lines, f"  file   {self.path}"])


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, and its version as "13.0"."""

    root: Path
    version: str


def build(cuda: bool | None = None, force: bool = False, source: Path = CSRC) -> Report:
    """Build the library for this source, torch and processor, unless it is there.

    Several processes may do this at once, on one machine or on several that share the cache: one builds, the others
    wait; where the file system has no locks, each builds and any one's result is kept, whole.

    Args:
        cuda: with the CUDA kernels; None: if this torch has CUDA and nvcc is found.
        force: build even if it is there.
        source: the folder of the sources.

    Raises:
        KernelError: a tool is missing, CUDA was asked for and cannot be had, or the compiler refuses.
    """
    started = time.monotonic()
    toolkit, why_no_cuda = (None, "not asked for") if cuda is False else _cuda_toolkit()
    if cuda and toolkit is None:
        raise KernelError(f"CUDA kernels were asked for, but {why_no_cuda}.")
    architectures = _architectures() if toolkit else ()

    sources = read_sources(source, toolkit is not None)
    key = source_key(sources, toolkit is not None)
    if toolkit:
        key = "-".join([key, f"cu{toolkit.version}", *architectures])

    def report(path: Path, reused: bool, warnings: tuple[str, ...] = ()) -> Report:
        seconds = time.monotonic() - started
        return Report(path, cpu_capability(), architectures, why_no_cuda, seconds, reused, warnings)

    if not force and (path := find_key(key)):
        with contextlib.suppress(OSError):  # a packaged one may not be ours
            os.utime(path)  # of several with CUDA kernels the newest is taken: this one was asked for
        return report(path, reused=True)
    environment = _environment(toolkit, architectures)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{key}.lock"):
            if not force and (path := find_key(key)):  # while this process waited
                return report(path, reused=True)
            log.info(
                "Building the kernels for %s%s.", cpu_capability(), f" and CUDA {toolkit.version}" if toolkit else ""
            )
            _remove_leftovers(folder, key)
            # Beside the destination, so that the rename stays within one file system.
            with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=folder, ignore_cleanup_errors=True) as private:
                warnings = _compile(Path(private), sources, source, toolkit is not None, environment)
                facts = {
                    "key": key,
                    "cpu": cpu_capability(),
                    "cuda": architectures,
                    "torch": torch.__version__,
                    "flags": cxx_flags(),
                    "nvcc_flags": NVCC_FLAGS if toolkit else (),
                }
                (Path(private) / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
                _publish(Path(private), folder / key)
    except OSError as error:
        raise KernelError(f"The kernels cannot be stored in {folder}: {error}") from error
    return report(folder / key / LIBRARY, reused=False, warnings=warnings)


def find_toolkit() -> Toolkit | None:
    """Return the CUDA toolkit of CUDA_HOME or CUDA_PATH, else of the nvcc on PATH, else /usr/local/cuda, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if nvcc is None:
        return None
    version = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"]))
    if version is None:
        return None
    # The nvcc on PATH can be a script or a link to the toolkit's; nvcc itself knows where its headers are.
    top = re.search(r"^#\$ TOP=(.+)$", _output([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]), re.MULTILINE)
    folders = [Path(nvcc).parents[1], *([Path(top[1])] if top else [])]
    root = next((folder for folder in folders if (folder / "include" / "cuda_runtime_api.h").exists()), folders[0])
    return Toolkit(root.resolve(), version[1])


def _cuda_toolkit() -> tuple[Toolkit | None, str]:
    """Return the toolkit to build the CUDA kernels with, or why they cannot be built."""
    if torch.version.cuda is None:
        return None, f"this torch ({torch.__version__}) has no CUDA"
    toolkit = find_toolkit()
    if toolkit is None:
        return None, "nvcc was not found: it is neither in CUDA_HOME nor on PATH nor in /usr/local/cuda"
    if toolkit.version.split(".")[0] != torch.version.cuda.split(".")[0]:
        return None, f"nvcc in {toolkit.root} is of CUDA {toolkit.version} and this torch of CUDA {torch.version.cuda}"
    return toolkit, ""


def _architectures() -> tuple[str, ...]:
    """Return the GPU architectures to compile for: TORCH_CUDA_ARCH_LIST, else our own and the present GPUs'."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        names = set(re.split(r"[;, ]+", listed.strip("; ")))
        if others := sorted(name for name in names if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", name)):
            raise KernelError(
                f"TORCH_CUDA_ARCH_LIST has {', '.join(others)}; here it takes compute capabilities by number, such as "
                "8.0;9.0+PTX."
            )
        return tuple(sorted(names))
    present = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    # A GPU that torch itself has no code of its own for runs that for a smaller one, as torch does.
    added = {f"{major}.{minor}" for major, minor in present if f"sm_{major}{minor}" in torch.cuda.get_arch_list()}
    added -= {name.removesuffix("+PTX") for name in ARCHITECTURES}
    return tuple(sorted({*ARCHITECTURES, *added}, key=lambda name: float(name.removesuffix("+PTX"))))


def _environment(toolkit: Toolkit | None, architectures: tuple[str, ...]) -> dict[str, str]:
    """Return the environment to compile in; raises if a tool is missing."""
    import sysconfig

    # ninja from PyPI lies beside this Python, which need not be on PATH. The compiler's messages are read: in English.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "LC_ALL": "C"}
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(shlex.split(compiler)[0], path=path) is None:
        raise KernelError(f"There is no C++ compiler ({compiler}): install g++, or name one in CXX.")
    if shutil.which("ninja", path=path) is None:
        raise KernelError("There is no ninja, which runs the compiler: pip install ninja")
    if toolkit:
        environment |= {"CUDA_HOME": str(toolkit.root), "TORCH_CUDA_ARCH_LIST": ";".join(architectures)}
    return environment


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of that file; where there are no locks, do without: what is published is whole all the same."""
    with path.open("a") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path, key: str) -> None:
    """Remove what killed builds left; not what is young, since another machine may be at it where locks do not work."""
    for left in folder.glob(f".{key}-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)


# In a process of its own: cpp_extension loads what it has built, which shows that it can be loaded, and must not
# register the operators here, where the library is to be loaded from its final place.
COMPILE = "import json, sys; from torch.utils.cpp_extension import load; load(**json.load(sys.stdin))"


def _compile(
    folder: Path, sources: Mapping[str, bytes], source: Path, cuda: bool, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Compile a copy of the sources, which nobody edits meanwhile, to folder/LIBRARY; return the warnings."""
    copy = folder / "csrc"
    for name, content in sources.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    units = [name for name in sources if name.endswith((".cpp", ".cu"))]
    names = [Path(name).name for name in units]
    if twice := {name for name in names if names.count(name) > 1}:  # cpp_extension names objects after these alone
        raise KernelError(f"Two files in {source} are called {', '.join(sorted(twice))}; rename one.")
    arguments = {
        "name": NAME,
        "sources": [str(copy / name) for name in units],
        "extra_cflags": [*cxx_flags(), f"-ffile-prefix-map={copy}=csrc"],
        "extra_cuda_cflags": list(NVCC_FLAGS),
        "extra_ldflags": ["-fopenmp"],
        "extra_include_paths": [str(copy)],
        "build_directory": str(folder),
        "with_cuda": cuda,
        "is_python_module": False,
        "verbose": True,
    }
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(
        command,
        input=json.dumps(arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    output = done.stdout.replace(str(copy), str(source))
    if done.returncode:
        raise KernelError(f"The kernels do not compile:\n{_failure(output) or done.stderr[-4000:].strip()}")
    return tuple(dict.fromkeys(line for line in output.splitlines() if ": warning" in line))


def _failure(output: str, most: int = 60) -> str:
    """Return the last lines of what the compiler said on the files that failed, out of what ninja printed."""
    kept: list[str] = []
    lines = iter(output.splitlines())
    failed = False
    for line in lines:
        if line.startswith("FAILED: "):
            failed = True
            next(lines, None)  # the command
        elif re.match(r"\[\d+/\d+\] |ninja: ", line):
            failed = False
        elif failed:
            kept.append(line)
    return "\n".join(kept[-most:])


def _publish(private: Path, destination: Path) -> None:
    """Move the files to where they are looked for, the library last: where it is, nothing is missing."""
    destination.mkdir(exist_ok=True)
    for name in (FACTS, LIBRARY):
        with (private / name).open("rb") as file:
            os.fsync(file.fileno())
        (private / name).replace(destination / name)


def _output(command: list[str]) -> str:
    """Return what a command prints, "" if it cannot be run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError:
        return ""
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lorsa.kernels.build", description=(__doc__ or "").split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--cuda",
        action="store_true",
        default=None,
        help="with the CUDA kernels, or fail (default: if torch and nvcc have it)",
    )
    which.add_argument("--no-cuda", action="store_false", dest="cuda", help="without the CUDA kernels")
    parser.add_argument("--force", action="store_true", help="build even if nothing has changed")
    parser.add_argument("--copy-to", type=Path, metavar="FOLDER", help="copy the library there too, under its key")
    options = parser.parse_args(arguments)
    try:
        report = build(options.cuda, options.force)
    except KernelError as error:
        print(f"kernels  not built: {error}", file=sys.stderr)
        return 1
    print(report)
    if options.copy_to:
        folder = report.path.parent
        shutil.copytree(folder, options.copy_to / folder.name, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
