"""The cache of bases: what is read back, who computes, and what damage and full disks leave behind."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import resource
import time
import warnings
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorsa.kernels import KernelError
from lorsa.kernels.library import cache_folder
from lorsa.methods import MethodError
from lorsa.methods.lorsa import cache as cache_module
from lorsa.methods.lorsa import singular_basis
from lorsa.methods.lorsa.cache import BasisCache, default_folder, prefetch


def weight(m: int = 12, n: int = 20, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def only_file(cache: BasisCache) -> Path:
    (path,) = cache.folder.glob("*.safetensors")
    return path


def assert_same(basis, expected) -> None:
    for part in ("U", "s", "V"):
        assert torch.equal(getattr(basis, part), getattr(expected, part)), part


def test_without_a_home_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch):
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LORSA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(MethodError, match="set LORSA_CACHE"):
        default_folder()
    with pytest.raises(KernelError, match="set LORSA_CACHE"):
        cache_folder()


@pytest.fixture
def cache(tmp_path: Path) -> BasisCache:
    return BasisCache(tmp_path)


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names = []

    def counted(weight: Tensor, name: str):
        names.append(name)
        return singular_basis(weight, name)

    monkeypatch.setattr(cache_module, "singular_basis", counted)
    return names


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12), (1, 5)])
def test_what_is_stored_is_what_is_computed(cache: BasisCache, m: int, n: int, dtype: torch.dtype):
    W = weight(m, n).to(dtype)
    expected = singular_basis(W)
    for computed in (True, False):
        stored = cache.basis(W)
        assert stored.computed == computed
        assert torch.equal(stored.s, expected.s)
        assert_same(stored.load(), expected)
        indices = [0] if m == 1 else [7, 0, 3]
        assert_same(stored.select(indices), expected.select(indices))
    part = stored.select([])
    assert (part.U.shape, part.s.shape, part.V.shape) == ((m, 0), (0,), (n, 0))
    selected = stored.select([0])
    assert selected.U.is_contiguous()
    assert selected.V.is_contiguous()


def test_a_weight_is_known_by_its_values_dtype_and_shape(cache: BasisCache, computations: list[str]):
    W = weight()
    others = [W.double(), W.bfloat16(), W.reshape(20, 12), W.mT, W * (1 + 1e-6)]
    assert not cache.has(W)
    cache.basis(W)
    assert cache.has(W.clone())
    assert cache.has(W.mT.contiguous().mT)
    assert cache.has(nn.Parameter(W))
    assert not any(cache.has(other) for other in others)
    for other in others:
        cache.basis(other)
    assert len(computations) == 6


def test_a_new_algorithm_computes_again(cache: BasisCache, monkeypatch: pytest.MonkeyPatch):
    cache.basis(weight())
    monkeypatch.setattr(cache_module, "ALGORITHM_VERSION", -1)
    assert not cache.has(weight())


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(3, 4, device="meta"), torch.full((3, 4), torch.nan)])
def test_weights_without_a_decomposition_leave_no_file(cache: BasisCache, bad: Tensor):
    with pytest.raises(MethodError, match=r"^encoder "):
        cache.basis(bad, "encoder")
    assert not list(cache.folder.glob("*.safetensors"))
    assert not list(cache.folder.glob("*.part"))


def test_prefetch_computes_what_is_missing_once(cache: BasisCache, computations: list[str]):
    first, second, tied = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)
    tied.weight = first.weight
    cache.basis(second.weight, "before")
    done: list[tuple[str, bool]] = []
    layers = {"first": first, "second": second, "tied": tied}
    prefetch(layers, cache, lambda name, computed: done.append((name, computed)))
    assert done == [("first", True), ("second", False), ("tied", False)]
    assert computations == ["before", "first"]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def in_header(path: Path) -> int:
    return path.read_bytes().index(b'"F32"') + 2


def in_singular_values(path: Path) -> int:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return 8 + size + json.loads(content[8 : 8 + size])["s"]["data_offsets"][0]


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no basis": lambda path: path.write_text("something else entirely"),
    "older format": lambda path: path.write_bytes(
        path.read_bytes().replace(b'"lorsa_basis": "1"', b'"lorsa_basis": "0"')
    ),
    "bit in the header": lambda path: flip(path, in_header(path)),
    "bit in s": lambda path: flip(path, in_singular_values(path)),
    "bit in a checksum": lambda path: flip(path, -1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_no_whole_basis_is_replaced_when_opened(cache: BasisCache, damage: str):
    cache.basis(weight())
    DAMAGE[damage](only_file(cache))
    with pytest.warns(UserWarning, match=r"\.safetensors .*; the basis is computed again\.$"):
        stored = cache.basis(weight())
    assert stored.computed
    assert_same(stored.load(), singular_basis(weight()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cache.basis(weight()).computed


def test_another_weights_file_is_replaced(cache: BasisCache):
    cache.basis(weight())
    path = only_file(cache)
    content = path.read_bytes()
    path.unlink()
    cache.basis(weight(seed=1))
    only_file(cache).write_bytes(content)
    with pytest.warns(UserWarning, match="computed again"):
        assert_same(cache.basis(weight(seed=1)).load(), singular_basis(weight(seed=1)))


def damaged_component(cache: BasisCache, component: int) -> None:
    """Change the last bit of one entry of U."""
    path = only_file(cache)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    flip(path, 8 + size + component * 12 * 4)


def test_a_damaged_component_is_found_by_those_who_read_it(cache: BasisCache, computations: list[str]):
    cache.basis(weight())
    damaged_component(cache, 5)
    stored = cache.basis(weight())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored.select([4, 6])
    assert len(computations) == 1
    with pytest.warns(UserWarning, match="does not match its checksum; the basis is computed again"):
        assert_same(stored.select([4, 5]), singular_basis(weight()).select([4, 5]))
    damaged_component(cache, 5)
    with pytest.warns(UserWarning, match="computed again"):
        assert_same(cache.basis(weight()).load(), singular_basis(weight()))
    assert len(computations) == 3


def test_a_damaged_file_is_not_replaced_by_the_basis_of_a_changed_weight(cache: BasisCache):
    W = weight()
    stored = cache.basis(W, "encoder")
    damaged_component(cache, 0)
    W += 1
    with pytest.warns(UserWarning), pytest.raises(MethodError, match="damaged, and encoder has changed since"):
        stored.load()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(cache: BasisCache, monkeypatch: pytest.MonkeyPatch, number: int):
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        MethodError, match=r"^Cannot store the basis of q, 1,680 bytes, in .*; set LORSA_CACHE [^.]*\.$"
    ):
        cache.basis(weight(), "q")
    assert {path.suffix for path in cache.folder.iterdir()} == {".lock"}
    monkeypatch.undo()
    assert cache.basis(weight()).computed
    header = int.from_bytes(only_file(cache).read_bytes()[:8], "little")
    assert only_file(cache).stat().st_size == 1680 + 8 + header


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MethodError, match=r"^Cannot store the basis of weight, .*\(Not a directory\); set LORSA_CACHE"):
        BasisCache(tmp_path / "file").basis(weight())


def test_a_temporary_cache_is_deleted_when_it_is_not_used_any_more():
    for end in ("close", "collect"):
        cache = BasisCache.temporary()
        folder = cache.folder.parent
        stored = cache.basis(weight())
        assert folder.is_dir()
        if end == "close":
            cache.close()
        else:
            del cache
            gc.collect()
            assert folder.is_dir()  # `stored` still needs it
            del stored
            gc.collect()
        assert not folder.exists()


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LORSA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache" / "lorsa"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/xdg/lorsa")
    monkeypatch.setenv("LORSA_CACHE", "~/bases")
    assert default_folder() == tmp_path / "bases"


# What only processes of their own can show. Forked, they need not import everything again.
FORK = multiprocessing.get_context("fork")


def start(child: Callable[[Callable[[object], None]], None]) -> tuple[BaseProcess, Connection]:
    """Run `child(send)` in a process of its own; what it sends can be received."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=child, args=(sender.send,))
    process.start()
    sender.close()
    return process, receiver


def test_processes_that_want_the_same_basis_compute_it_once(cache: BasisCache, monkeypatch: pytest.MonkeyPatch):
    barrier = FORK.Barrier(2)

    def slow(weight: Tensor, name: str):
        time.sleep(1)
        return singular_basis(weight, name)

    def child(send: Callable[[object], None]) -> None:
        W = weight(30, 40)
        barrier.wait(30)
        stored = cache.basis(W)
        send((stored.computed, stored.s.tolist(), stored.load().U.tolist()))

    monkeypatch.setattr(cache_module, "singular_basis", slow)
    results = [receiver.recv() for _, receiver in [start(child), start(child)]]
    assert sorted(computed for computed, *_ in results) == [False, True]
    assert results[0][1:] == results[1][1:]


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_taken_for_a_basis(cache: BasisCache):
    def child(send: Callable[[object], None]) -> None:
        def stuck(descriptor: int) -> None:
            send("writing")
            time.sleep(600)

        os.fsync = stuck
        cache.basis(weight())

    process, receiver = start(child)
    assert receiver.recv() == "writing"
    process.kill()
    process.join()
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".lock", ".part"]
    assert not cache.has(weight())
    assert cache.basis(weight()).computed  # the lock died with its holder
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".lock", ".safetensors"]


def test_a_file_size_limit_while_writing_leaves_nothing(cache: BasisCache):
    def child(send: Callable[[object], None]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            cache.basis(weight(100, 100), "q")
        except MethodError as error:
            send(str(error))

    _, receiver = start(child)
    assert "Cannot store the basis of q, 81,200 bytes" in receiver.recv()
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]


def resident(kind: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) * 1024


def test_prefetch_holds_one_basis_at_a_time(cache: BasisCache, monkeypatch: pytest.MonkeyPatch):
    computed: list[weakref.ref[Tensor]] = []

    def watched(*given: object) -> object:
        assert not [each for each in computed if each() is not None]
        basis = singular_basis(*given)
        computed.append(weakref.ref(basis.V))
        return basis

    monkeypatch.setattr(cache_module, "singular_basis", watched)
    prefetch({name: nn.Linear(20, 12) for name in ("q", "k", "v")}, cache)
    assert len(computed) == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_within_a_few_times_the_factors_and_reading_takes_what_is_asked(cache: BasisCache):
    factors = 2 * 4 * 2000 * 2000

    def child(send: Callable[[object], None]) -> None:
        W = weight(2000, 2000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cache.basis(W)
        send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
        stored = cache.basis(W)
        for read in (lambda: stored.select([0, 1, 2]), lambda: stored.load().U.sum() + stored.load().V.sum()):
            files, anonymous = resident("RssFile"), resident("RssAnon")
            read()
            send((resident("RssFile") - files, resident("RssAnon") - anonymous))

    _, receiver = start(child)
    assert receiver.recv() < 6 * factors
    files, anonymous = receiver.recv()
    # The system maps up to 2 MiB at a time around what is read, here in two places.
    assert files < factors / 4
    assert anonymous < factors / 16
    files, anonymous = receiver.recv()
    assert files > factors / 2  # the pages are the file's ...
    assert anonymous < factors / 16  # ... and not copies
