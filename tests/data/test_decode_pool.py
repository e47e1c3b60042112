from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import decode_pool
from sfumato.data.decode import Decoded, ImageSpec, Unreadable
from sfumato.data.decode_pool import DecodePool
from sfumato.errors import InternalError, UserError

SPEC = ImageSpec(8, 8, 3)
KEY = bytes(range(32))

# Python imports a module of this name when it starts. This one gives the workers images that do what no file may do.
SABOTAGE = """
import os, signal, sys, time
if "-m" in sys.orig_argv and "sfumato.data._decode_worker" in sys.orig_argv:
    import PIL.Image
    honest = PIL.Image.open
    opened = 0
    def open(file, *arguments, **options):
        global opened
        opened += 1
        word = file.getvalue()[:4]
        if file.getvalue().endswith(b"ONCE") and opened > 1:
            raise MemoryError
        if word == b"HANG":
            time.sleep(1000)
        if word == b"SEGV":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == b"HOGS":
            return bytearray(1 << 34)
        if word == b"TALK":
            os.write(1, b"!" * 100)
        return honest(file, *arguments, **options)
    PIL.Image.open = open
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(100):
        values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"{number:03}.png")
    (root / "empty.png").touch()
    (root / "text.png").write_bytes(b"hello")
    (root / "cut.png").write_bytes((root / "000.png").read_bytes()[:-60])
    os.mkfifo(root / "pipe.png")
    return root


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.syspath_prepend(folder)


def plain(results: Iterator[Decoded]) -> list[tuple[bytes, bytes | None, Unreadable | None]]:
    return [(one.digest, None if one.pixels is None else one.pixels.tobytes(), one.fault) for one in results]


def decode_all(root: Path, names: list[str], workers: int, timeout: float = 20.0) -> list:
    with DecodePool(root, SPEC, KEY, workers, timeout) as pool:
        return plain(pool.map(names))


def expected(root: Path, names: list[str]) -> list:
    return decode_all(root, names, workers=0)


NAMES = [f"{number:03}.png" for number in range(100)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_this_process_gives_in_the_same_order(root: Path, workers: int) -> None:
    unicode = [os.fsdecode(b"\xff\xfe.png"), "e\u0301.png", "\u00e9.png"]
    for name, source in zip(unicode, NAMES, strict=False):
        (root / name).write_bytes((root / source).read_bytes())
    odd = ["empty.png", "text.png", "cut.png", "pipe.png", "gone.png", "../x", "", "a\0", "\ud800", "x" * 10_000]
    names = [*NAMES, *odd, *unicode, *NAMES[::-1], "000.png"]
    got = decode_all(root, names, workers)
    assert got == expected(root, names)
    assert [fault for _, _, fault in got[100:105]] == [
        Unreadable.empty,
        Unreadable.unknown_format,
        Unreadable.damaged,
        Unreadable.not_a_file,
        Unreadable.not_a_file,
    ]
    assert all(fault is None for _, _, fault in got[:100])
    assert got[110:113] == got[:3]


def test_pixels_are_writable_and_separate(root: Path) -> None:
    with DecodePool(root, SPEC, KEY, workers=1) as pool:
        first, second = pool.map(["000.png", "000.png"])
    first.pixels[:] = 7
    assert second.pixels.flags.writeable
    assert not (second.pixels == 7).all()


def test_the_digest_is_keyed(root: Path) -> None:
    with DecodePool(root, SPEC, b"another key of 32 bytes and more", workers=1) as pool:
        assert next(pool.map(["000.png"])).digest != decode_all(root, ["000.png"], 0)[0][0]


def test_large_images_and_relative_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    spec = ImageSpec(1200, 1300, 3, "stretch", (-5, 700))
    with DecodePool(Path("root"), spec, KEY, workers=1) as pool:
        shapes = [one.pixels.shape for one in pool.map(NAMES[:5])]
    assert shapes == [(3, 1200, 1300)] * 5


@pytest.mark.usefixtures("sabotage")
def test_hanging_and_crashing_files_are_found_and_the_others_decoded(root: Path) -> None:
    bad = {
        "hang.png": (b"HANG", Unreadable.timed_out),
        "segv.png": (b"SEGV", Unreadable.crashed),
        "hogs.png": (b"HOGS", Unreadable.crashed),
    }
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    names = [*NAMES[:40], "segv.png", *NAMES[40:70], "hang.png", "hogs.png", *NAMES[70:]]
    want = [(bytes(16), None, bad[name][1]) if name in bad else expected(root, [name])[0] for name in names]
    assert decode_all(root, names, workers=2, timeout=1.0) == want


@pytest.mark.usefixtures("sabotage")
def test_memory_lost_to_earlier_files_does_not_condemn_a_file(root: Path) -> None:
    (root / "once.png").write_bytes((root / "000.png").read_bytes() + b"ONCE")
    got = decode_all(root, ["001.png", "once.png", "002.png"], workers=1)
    assert [fault for _, _, fault in got] == [None] * 3
    assert got[1][1] == expected(root, ["000.png"])[0][1]


@pytest.mark.usefixtures("sabotage")
def test_noise_on_standard_output_does_not_disturb(root: Path) -> None:
    (root / "talk.png").write_bytes(b"TALK")
    got = decode_all(root, ["talk.png", "000.png"], workers=1)
    assert [fault for _, _, fault in got] == [Unreadable.unknown_format, None]


def pids(pool: DecodePool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_struck_from_outside_costs_no_file(root: Path, blow: signal.Signals) -> None:
    names = NAMES * 20
    with DecodePool(root, SPEC, KEY, workers=2, timeout=1.5) as pool:
        results = pool.map(names)
        got = plain(itertools.islice(results, 50))
        victims = pids(pool)
        os.kill(victims[0], blow)
        got += plain(results)
        assert victims[0] not in pids(pool)
    assert got == expected(root, names)


def test_an_idle_dead_worker_is_replaced(root: Path) -> None:
    with DecodePool(root, SPEC, KEY, workers=1) as pool:
        assert plain(pool.map(NAMES)) == expected(root, NAMES)
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
        assert plain(pool.map(NAMES)) == expected(root, NAMES)


def test_a_slow_caller_is_not_a_slow_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour spent elsewhere must not count against a worker that then takes half a second to reply."""
    elsewhere = 0.0
    monkeypatch.setattr(decode_pool, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + elsewhere))
    with DecodePool(root, SPEC, KEY, workers=2) as pool:
        list(pool.map(NAMES))
        before = pids(pool)
        os.kill(before[0], signal.SIGSTOP)
        elsewhere += 3600
        threading.Timer(0.5, os.kill, [before[0], signal.SIGCONT]).start()
        assert plain(pool.map(NAMES)) == expected(root, NAMES)
        assert pids(pool) == before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_reading_ahead_is_bounded(root: Path) -> None:
    """2,000 arrays would take 98 MB."""
    taken = ahead = growth = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 2_001):
            yield NAMES[taken % 100]

    with DecodePool(root, ImageSpec(128, 128, 3), KEY, workers=2) as pool:
        results = pool.map(names())
        assert taken == 0
        next(results)
        start = resident()
        for done, one in enumerate(results, 2):
            assert one.fault is None
            ahead = max(ahead, taken - done)
            growth = max(growth, resident() - start) if done % 200 == 0 else growth
    assert done == taken == 2_000
    assert ahead <= 2 * decode_pool.CHUNKS_A_WORKER * 2 * decode_pool.CHUNK_FILES
    assert growth < 40 * 2**20


def test_large_pixels_mean_small_chunks(root: Path) -> None:
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for name in ["000.png"] * 200:
            taken += 1
            yield name

    with DecodePool(root, ImageSpec(1024, 1024, 3), KEY, workers=1) as pool:
        next(pool.map(names()))
    assert taken <= 2 * decode_pool.CHUNKS_A_WORKER + 1


def test_an_abandoned_map_leaves_nothing_behind(root: Path) -> None:
    with DecodePool(root, SPEC, KEY, workers=2) as pool:
        results = pool.map(NAMES * 10)
        next(results)
        with pytest.raises(InternalError):
            next(pool.map(NAMES))
        results.close()
        assert plain(pool.map(NAMES[::-1])) == expected(root, NAMES[::-1])


def test_an_error_of_the_caller_passes_through(root: Path) -> None:
    def names() -> Iterator[str]:
        yield from NAMES
        raise KeyError("mine")

    with DecodePool(root, SPEC, KEY, workers=1) as pool:
        with pytest.raises(KeyError, match="mine"):
            list(pool.map(names()))
        assert plain(pool.map(NAMES)) == expected(root, NAMES)


def test_no_process_or_handle_is_left(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with DecodePool(root, SPEC, KEY, workers=2) as pool:
        list(pool.map(NAMES))
        started = pids(pool)
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(InternalError):
        next(pool.map(NAMES))


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_in_nothing_out(root: Path, workers: int) -> None:
    assert decode_all(root, [], workers) == []


def test_the_key_is_in_no_argument_or_environment(root: Path) -> None:
    with DecodePool(root, SPEC, KEY, workers=1) as pool:
        list(pool.map(NAMES))
        for kind in ("cmdline", "environ"):
            seen = Path(f"/proc/{pids(pool)[0]}/{kind}").read_bytes()
            assert KEY.hex().encode() not in seen
            assert KEY not in seen


def test_workers_are_limited_and_silent(root: Path) -> None:
    with DecodePool(root, SPEC, KEY, workers=1) as pool:
        assert plain(pool.map(NAMES)) == expected(root, NAMES)
        process = Path(f"/proc/{pids(pool)[0]}")
        limits = {line[:26].strip(): line[26:].split()[0] for line in (process / "limits").read_text().splitlines()}
        assert int(limits["Max address space"]) < 3 * 2**30
        assert limits["Max core file size"] == "0"
        assert os.readlink(process / "fd" / "2") == "/dev/null"
        os.kill(pids(pool)[0], signal.SIGINT)
        assert plain(pool.map(NAMES)) == expected(root, NAMES)
        assert [str(process.name)] == [str(pid) for pid in pids(pool)]


SCRIPT = """
import sys
from pathlib import Path
from sfumato.data.decode import ImageSpec
from sfumato.data.decode_pool import DecodePool
with DecodePool(Path(sys.argv[1]), ImageSpec(8, 8, 3), bytes(range(32)), workers=2) as pool:
    results = pool.map(["000.png"] * 5)
    print(next(results).digest.hex(), sum(worker.process.pid > 0 for worker in pool._workers))
    if sys.argv[2:]:
        print(*(worker.process.pid for worker in pool._workers), flush=True)
        sys.stdin.read()
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("form", ["-c", "file"])
def test_works_from_any_kind_of_program(root: Path, tmp_path: Path, form: str) -> None:
    """Without a guard for `__main__`. A PIL.py in the current folder, here the private one, must not be imported."""
    (root / "PIL.py").write_text("raise SystemExit('imported')")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = {"-c": ["-P", "-c", SCRIPT], "file": [str(tmp_path / "script.py")]}[form]
    done = subprocess.run(
        [sys.executable, *command, str(root)],
        env=environment(),
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [decode_all(root, ["000.png"], 0)[0][0].hex(), "2"]
    assert done.stderr == ""


def test_workers_end_when_their_parent_is_killed(root: Path) -> None:
    command = [sys.executable, "-P", "-c", SCRIPT, str(root), "stay"]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        orphans = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(orphans) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, orphans)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, orphans))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_that_cannot_start_are_one_clear_sentence(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    with DecodePool(root, SPEC, KEY) as pool, pytest.raises(UserError, match="while starting; check that"):
        next(pool.map(NAMES))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="cannot be started; free"), DecodePool(root, SPEC, KEY):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": b"short"}, "digest key has 5 bytes"),
        ({"key": bytes(65)}, "digest key has 65 bytes"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"timeout": 0}, "timeout is 0 "),
        ({"timeout": float("nan")}, "timeout is nan "),
    ],
)
def test_wrong_arguments(root: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodePool(**{"root": root, "spec": SPEC, "key": KEY} | arguments)
