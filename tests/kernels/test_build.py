"""A library is built once for what it is built from, is never half there, and says why where it is not."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from lorsa.kernels import build as builder
from lorsa.kernels import library
from lorsa.kernels.build import build
from lorsa.kernels.library import KernelError, choose, covers, find, load, read_sources, source_key

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler here")


@pytest.fixture
def csrc(tmp_path, monkeypatch) -> Path:
    """Sources without torch's headers, which take ten seconds to read, an empty cache, and a torch without CUDA."""
    monkeypatch.setenv("LORSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.version, "cuda", None)
    folder = tmp_path / "csrc"
    (folder / "cpu").mkdir(parents=True)
    (folder / "cuda").mkdir()
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    (folder / "cpu" / "answer.cpp").write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    (folder / "cuda" / "answer.cu").write_text("__global__ void answer() {}\n")
    return folder


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Set a compiler that notes each file it compiles, after `seconds`; returns the notes' path."""

    def set_compiler(seconds: int = 0) -> Path:
        notes = tmp_path / "compiled"
        notes.touch()
        script = tmp_path / "noting-g++"
        note = f'case " $* " in *" -c "*) echo compiled >> {notes}; sleep {seconds};; esac'
        script.write_text(f'#!/bin/sh\n{note}\nexec {shutil.which("c++")} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return notes

    return set_compiler


def key(csrc: Path, cuda: bool = False) -> str:
    return source_key(read_sources(csrc, cuda), cuda)


def unfinished() -> list[Path]:
    return list(library.cache_folder().glob(".*"))


def at_once(count: int, csrc: Path) -> list[bool]:
    """Build in processes that start together; returns what each said of `reused`."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=lambda: results.put(build(source=csrc).reused)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return sorted(results.get() for _ in processes)


# The key


def test_the_key_follows_sources_flags_torch_and_processor(csrc, monkeypatch):
    keys = [key(csrc), key(csrc, cuda=True)]
    (csrc / "answer.h").write_text("#define ANSWER 43\n")
    keys.append(key(csrc))
    (csrc / "cpu" / "more.cpp").write_text("")
    keys.append(key(csrc))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    keys.append(key(csrc))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    keys.append(key(csrc))
    monkeypatch.setattr(library, "CXX_FLAGS", (*library.CXX_FLAGS, "-g"))
    keys.append(key(csrc))
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    keys.append(key(csrc))
    assert len(set(keys)) == len(keys)


def test_the_key_without_cuda_does_not_follow_the_cuda_sources(csrc):
    before = key(csrc), key(csrc, cuda=True)
    (csrc / "cuda" / "answer.cu").write_text("// another\n")
    assert key(csrc) == before[0]
    assert key(csrc, cuda=True) != before[1]


def test_the_key_does_not_follow_what_is_no_source(csrc):
    before = key(csrc)
    (csrc / ".#answer.h").write_text("an editor's\n")
    (csrc / "answer.h~").write_text("an editor's\n")
    assert key(csrc) == before


@pytest.mark.parametrize(("capability", "flag"), [("AVX512", "-mavx512f"), ("AVX2", "-mavx2"), ("DEFAULT", "")])
def test_flags_are_those_of_the_instruction_set_that_torch_chose(capability, flag, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert [name for name in library.cxx_flags() if name.startswith("-mavx")][:1] == ([flag] if flag else [])
    assert not {"-march=native", "-ffast-math"} & set(library.cxx_flags())


def test_the_sources_have_file_names_of_their_own():
    names = [Path(name).name for name in read_sources(library.CSRC, cuda=True) if name.endswith((".cpp", ".cu"))]
    assert len(names) == len(set(names))


# Building


@needs_compiler
def test_a_library_is_built_once_and_again_when_forced_or_changed(csrc, compiler):
    notes = compiler()
    assert find(csrc) is None
    first = build(source=csrc)
    assert not first.reused and first.cpu == torch.backends.cpu.get_cpu_capability()
    assert first.path == library.cache_folder() / key(csrc) / "lorsa_kernels.so" == find(csrc)
    assert json.loads((first.path.parent / "build.json").read_text())["key"] == key(csrc)
    assert unfinished() == []

    again = build(source=csrc)
    assert again.reused and again.path == first.path
    os.utime(first.path, (1, 1))
    build(source=csrc)
    assert first.path.stat().st_mtime > 1, "of several with CUDA kernels the one that was asked for last is taken"
    assert notes.read_text().splitlines() == ["compiled"]

    file = first.path.stat().st_ino
    assert not build(source=csrc, force=True).reused
    assert first.path.stat().st_ino != file
    assert notes.read_text().splitlines() == ["compiled"] * 2

    (csrc / "answer.h").write_text("#define ANSWER 43\n")
    assert find(csrc) is None


@needs_compiler
def test_what_is_compiled_is_what_was_hashed_and_warnings_are_told(csrc, monkeypatch):
    (csrc / "answer.h").write_text("#define ANSWER 42; int unused\n")
    hashed = key(csrc)

    def hash_then_edit(sources, cuda):
        (csrc / "answer.h").write_text("#define ANSWER not C++\n")
        return source_key(sources, cuda)

    monkeypatch.setattr(builder, "source_key", hash_then_edit)
    report = build(source=csrc)
    assert report.path.parent.name == hashed
    (warning,) = report.warnings
    assert warning.startswith(f"{csrc}/answer.h:1:24: warning: ") and "unused" in warning


@needs_compiler
def test_processes_that_build_at_once_build_once(csrc, compiler):
    notes = compiler(seconds=1)
    assert at_once(3, csrc) == [False, True, True]
    assert notes.read_text().splitlines() == ["compiled"]


@needs_compiler
def test_without_locks_each_builds_and_one_result_is_kept_whole(csrc, compiler, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    notes = compiler(seconds=1)
    assert at_once(2, csrc) == [False, False]
    assert notes.read_text().splitlines() == ["compiled"] * 2
    torch.ops.load_library(str(find(csrc)))
    assert unfinished() == []


@needs_compiler
def test_a_killed_build_leaves_nothing_that_is_taken_for_a_library(csrc, compiler):
    notes = compiler(seconds=300)

    def in_a_group_of_its_own():
        os.setsid()
        build(source=csrc)

    process = multiprocessing.get_context("fork").Process(target=in_a_group_of_its_own)
    process.start()
    limit = time.monotonic() + 60
    while not notes.read_text() and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join(10)
    assert notes.read_text() and find(csrc) is None
    (left,) = unfinished()

    compiler()
    assert not build(source=csrc).reused  # neither taken for done nor waited for
    assert unfinished() == [left]
    os.utime(left, (0, 0))
    builder._remove_leftovers(library.cache_folder(), key(csrc))
    assert unfinished() == []


@needs_compiler
def test_a_compile_error_is_told_in_the_compilers_words(csrc, capsys, monkeypatch):
    (csrc / "cpu" / "answer.cpp").write_text('#include "answer.h"\nint answer() { return QUESTION; }\n')
    monkeypatch.setattr(builder, "build", functools.partial(build, source=csrc))
    assert builder.main(["--no-cuda"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{csrc}/cpu/answer.cpp:2:23: error: " in said.err and "QUESTION" in said.err
    assert "-fopenmp" not in said.err  # the command
    assert find(csrc) is None and unfinished() == []


@needs_compiler
def test_a_library_that_does_not_load_is_not_kept(csrc):
    (csrc / "cpu" / "answer.cpp").write_text('int elsewhere();\nextern "C" int answer() { return elsewhere(); }\n')
    with pytest.raises(KernelError, match=r"undefined symbol: .*elsewhere"):
        build(source=csrc)
    assert find(csrc) is None


@needs_compiler
def test_a_compiler_may_have_arguments(csrc, monkeypatch):
    monkeypatch.setenv("CXX", "c++ -O1")
    assert builder._environment(None, ())["CXX"] == "c++ -O1"
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(KernelError, match=r"There is no C\+\+ compiler \(no-such-compiler -O1\)"):
        builder._environment(None, ())


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("c++", "There is no C++ compiler (c++): install g++"),
        ("ninja", "There is no ninja, which runs the compiler: pip"),
    ],
)
def test_a_missing_tool_is_named(missing, sentence, csrc, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **options: None if name == missing else which(name, **options))
    with pytest.raises(KernelError, match=re.escape(sentence)):
        build(source=csrc)


def test_two_files_of_one_name_are_refused(csrc):
    (csrc / "answer.cpp").write_text("")
    with pytest.raises(KernelError, match=r"called answer\.cpp; rename one"):
        build(source=csrc)


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(csrc, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(KernelError, match="cannot be stored in"):
        build(source=csrc)


@needs_compiler
def test_the_command_says_what_was_built(csrc, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(builder, "build", functools.partial(build, source=csrc))
    assert builder.main(["--copy-to", str(tmp_path / "copy")]) == 0
    said = capsys.readouterr().out
    assert "kernels  built in" in said and "C++    built for" in said and str(find(csrc)) in said
    assert f"CUDA   not built: this torch ({torch.__version__}) has no CUDA" in said
    assert sorted(path.name for path in (tmp_path / "copy" / key(csrc)).iterdir()) == ["build.json", "lorsa_kernels.so"]
    assert builder.main(["--no-cuda"]) == 0
    said = capsys.readouterr().out
    assert "there already" in said and "CUDA   not built: not asked for" in said


# CUDA


def test_cuda_that_was_asked_for_and_cannot_be_had_is_an_error(csrc, tmp_path, capsys, monkeypatch):
    with pytest.raises(KernelError, match=r"asked for, but this torch .* has no CUDA"):
        build(cuda=True, source=csrc)
    assert builder.main(["--cuda"]) == 1
    assert "has no CUDA" in capsys.readouterr().err

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(KernelError, match="asked for, but nvcc was not found"):
        build(cuda=True, source=csrc)

    monkeypatch.setattr(builder, "find_toolkit", lambda: builder.Toolkit(tmp_path, "11.8"))
    with pytest.raises(KernelError, match=r"is of CUDA 11\.8 and this torch of CUDA 13\.0"):
        build(cuda=True, source=csrc)


def test_the_toolkit_is_where_its_headers_are():
    toolkit = builder.find_toolkit()
    if toolkit is None:
        pytest.skip("no nvcc here")
    assert (toolkit.root / "bin" / "nvcc").exists() and (toolkit.root / "include" / "cuda_runtime_api.h").exists()
    assert toolkit.version.count(".") == 1


def test_architectures_are_those_listed_else_ours_and_the_gpus_own(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 9), (10, 0)][index])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90", "sm_100"])
    assert builder._architectures() == ("8.0", "9.0+PTX", "10.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0 8.6+PTX;9.0")
    assert builder._architectures() == ("8.6+PTX", "9.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere;9.0")
    with pytest.raises(KernelError, match=r"TORCH_CUDA_ARCH_LIST has Ampere; here it takes compute capabilities by"):
        builder._architectures()


@pytest.mark.parametrize(
    ("built", "capability", "covered"),
    [
        ("8.0-9.0+PTX", (8, 0), True),
        ("8.0-9.0+PTX", (8, 9), True),
        ("8.0-9.0+PTX", (7, 5), False),
        ("8.0-9.0+PTX", (12, 0), True),
        ("8.6-9.0", (8, 0), False),
        ("8.6-9.0", (10, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
    ],
)
def test_a_gpu_is_covered_by_its_generation_or_by_ptx(built, capability, covered):
    assert covers(Path(f"0123456789abcdef0123-cu13.0-{built}") / library.LIBRARY, capability) is covered


def test_no_gpu_is_covered_by_a_library_without_cuda():
    assert not covers(Path("0123456789abcdef0123") / library.LIBRARY, (9, 0))


def test_a_library_with_cuda_is_nothing_to_a_torch_without(csrc):
    for name in (key(csrc), f"{key(csrc, cuda=True)}-cu13.0-8.0-9.0+PTX"):
        (library.cache_folder() / name).mkdir(parents=True)
        (library.cache_folder() / name / library.LIBRARY).touch()
    assert find(csrc).parent.name == key(csrc)


def test_a_library_with_cuda_is_found_without_nvcc(csrc, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    names = [key(csrc), f"{key(csrc, cuda=True)}-cu13.0-8.0-9.0+PTX", f"{key(csrc, cuda=True)}-cu13.0-8.0"]
    for age, name in enumerate(names):
        (library.cache_folder() / name).mkdir(parents=True)
        (library.cache_folder() / name / library.LIBRARY).touch()
        os.utime(library.cache_folder() / name / library.LIBRARY, (age, age))
    assert find(csrc).parent.name == names[-1]
    assert choose("jit", csrc).parent.name == names[-1]
    # The newest has nothing for an H100, and for an older GPU than both there is nothing.
    for setting in ("auto", "built", "jit"):
        found = {at: choose(setting, csrc, at).parent.name for at in ((8, 0), (9, 0), (7, 5))}
        assert found == {(8, 0): names[-1], (9, 0): names[1], (7, 5): names[-1]}


# Choosing and loading


def test_the_setting_chooses(csrc, monkeypatch):
    assert choose("auto", csrc) is choose("", csrc) is choose("reference", csrc) is None
    with pytest.raises(KernelError, match=r"not built for this source.*: python -m lorsa\.kernels\.build$"):
        choose("built", csrc)
    with pytest.raises(KernelError, match="LORSA_KERNELS=fast is unknown; it is one of auto, reference, built, jit"):
        choose("fast", csrc)

    path = library.cache_folder() / key(csrc) / library.LIBRARY
    path.parent.mkdir(parents=True)
    path.touch()
    assert choose("auto", csrc) == choose("built", csrc) == choose("jit", csrc) == path
    assert choose("reference", csrc) is None


@needs_compiler
def test_jit_builds(csrc):
    assert choose("jit", csrc) == find(csrc) is not None


def test_a_packaged_library_is_found(csrc, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "built")
    path = tmp_path / "built" / key(csrc) / library.LIBRARY
    path.parent.mkdir(parents=True)
    path.touch()
    assert find(csrc) == path
    assert build(source=csrc).reused


def test_one_library_is_loaded_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(torch.ops, "load_library", calls.append)
    load(tmp_path / "a.so")
    load(tmp_path / "a.so")
    assert calls == [str((tmp_path / "a.so").resolve())]
    with pytest.raises(KernelError, match=r"b\.so cannot be loaded: .*a\.so is"):
        load(tmp_path / "b.so")


def test_a_file_that_is_no_library_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_loaded", [])
    (tmp_path / "a.so").write_text("not a library")
    with pytest.raises(KernelError, match=r"cannot be loaded \(.*a\.so: .*\); build them again: .* --force"):
        load(tmp_path / "a.so")
