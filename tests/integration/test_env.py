"""Faults of the environment: no room, no rights, no io_uring, files that change underneath."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from patience import STALL

MIB = 1 << 20
PERM, LOCKED, NOTFOUND, INVAL = -32, -33, -34, -40


class Probe:
    """tests/env/probe.c, perhaps confined."""

    def __init__(self, programs: Path, *confine: str):
        # A copy where nobody can read it, wherever the checkout is.
        self.home = Path(tempfile.mkdtemp(prefix="cairn-env-"))
        self.home.chmod(0o755)
        for name in ("env_probe", "env_confine"):
            shutil.copy(programs / name, self.home)
        command = [self.home / "env_probe"]
        if confine:
            command = [self.home / "env_confine", *confine, *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, line: str) -> str:
        try:
            self.process.stdin.write(line + "\n")
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            rc = self.process.wait(30)
            said = self.process.stderr.read()
            if rc == 77:
                pytest.skip(f"this system does not allow it: {said.strip()}")
            raise AssertionError(f"the probe ended with {rc} at {line!r}: {said}")
        return answer.rstrip("\n")

    def open(self, uri: str) -> None:
        answer = self.ask(f"open {uri}")
        assert answer == "ok", answer

    def refused(self, uri: str) -> tuple[int, str]:
        """The status and the sentence of an open that must fail."""
        answer = self.ask(f"open {uri}")
        word, status, sentence = answer.split(" ", 2)
        assert word == "error" and len(sentence) > 20, answer
        print(sentence)
        return int(status), sentence

    def stats(self) -> dict:
        return json.loads(self.ask("stats"))

    def end(self) -> str:
        """Closes; what it said on the way."""
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said

    def destroy(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture
def probe(programs):
    made = []

    def make(*confine):
        made.append(Probe(programs, *confine))
        return made[-1]

    yield make
    for one in made:
        one.destroy()


@pytest.fixture
def open_place():
    """A directory that anybody may pass through and write to."""
    path = Path(tempfile.mkdtemp(prefix="cairn-env-log-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def uri(path, **options):
    options = {"ram": "16MiB", "disk": "64MiB", "prewrite": "no", **options}
    return f"embedded://{path}?" + "&".join(f"{k}={v}" for k, v in options.items())


def use(probe, first=0, count=40, length=100_000):
    """Puts, makes durable and reads back; of many, most can only come from disk."""
    for at in range(first, first + count, 20):
        # As much as there is room for before the disk has it.
        assert probe.ask(f"put {at} 20 {length}") == "stored 20"
        assert probe.ask("flush") == "status 0"
    assert probe.ask(f"get {first} {count} {length}") == f"hits {count} wrong 0"


def mount(*arguments):
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(place):
    """An ext4 of 96 MiB in a file."""
    image, path = place / "image", place / "mounted"
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(96 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    mount("-o", "loop", image, path)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_disk_too_small_for_the_log(probe, small_disk):
    p = probe()
    status, sentence = p.refused(uri(small_disk / "log", disk="256MiB"))
    assert "space" in sentence or "room" in sentence
    assert str(small_disk) in sentence
    left = small_disk / "log"
    assert not left.exists() or left.stat().st_blocks * 512 < 8 * MIB, "a useless file is left"
    p.open(uri(small_disk / "log", disk="32MiB"))
    use(p)
    p.end()


def test_disk_full_beside_the_log(probe, small_disk):
    """Its room was taken at open: what others fill up later takes nothing from it."""
    p = probe()
    p.open(uri(small_disk / "log", disk="32MiB"))
    use(p)
    with pytest.raises(OSError, match="No space"):
        with open(small_disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(MIB))
    for first in range(100, 1300, 40):
        use(p, first)
    p.end()
    p = probe()
    p.open(uri(small_disk / "log", disk="32MiB"))
    assert p.ask("get 1260 40 100000") == "hits 40 wrong 0"
    p.end()


def test_nobody_without_locked_memory(probe, open_place):
    p = probe("--memlock-0", "--nobody")
    p.open(uri(open_place / "log"))
    use(p, count=300)
    assert p.stats()["disk"]["engine"] in ("uring", "pool")
    p.end()
    assert (open_place / "log").stat().st_mode & 0o777 == 0o600
    assert (open_place / "log").stat().st_uid == 65534


def test_nobody_without_locked_memory_or_io_uring(probe, open_place):
    p = probe("--memlock-0", "--nobody", "--no-uring")
    p.open(uri(open_place / "log"))
    use(p, count=300)
    assert p.stats()["disk"]["engine"] == "pool"
    p.end()


def test_path_not_writable(probe, open_place):
    open_place.chmod(0o755)
    p = probe("--nobody")
    status, sentence = p.refused(uri(open_place / "log"))
    assert status == PERM
    assert str(open_place) in sentence


def test_log_of_somebody_else(probe, open_place):
    p = probe()
    p.open(uri(open_place / "log"))
    use(p)
    p.end()
    other = probe("--nobody")
    status, sentence = other.refused(uri(open_place / "log"))
    assert status == PERM
    assert str(open_place / "log") in sentence


def test_path_missing(probe, open_place):
    status, sentence = probe().refused(uri(open_place / "no" / "such" / "log"))
    assert status == NOTFOUND
    assert str(open_place / "no" / "such") in sentence


@pytest.mark.parametrize("who", [[], ["--nobody"]], ids=["root", "nobody"])
def test_read_only_mount(probe, open_place, who):
    mount("-t", "tmpfs", "-o", "ro,mode=1777,size=128m", "tmpfs", open_place)
    try:
        status, sentence = probe(*who).refused(uri(open_place / "log"))
        assert "read-only" in sentence.lower()
        assert str(open_place) in sentence
    finally:
        subprocess.run(["umount", "-l", open_place], check=True)


def test_without_direct_io(probe, place):
    """tmpfs may refuse O_DIRECT: the log then goes through the page cache."""
    mount("-t", "tmpfs", "-o", "size=128m", "tmpfs", place)
    try:
        p = probe()
        p.open(uri(place / "log"))
        use(p, count=300)
        p.end()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_io_uring_refused(probe, place):
    p = probe("--no-uring")
    p.open(uri(place / "log"))
    use(p, count=300)
    assert p.stats()["disk"]["engine"] == "pool"
    said = p.end()
    assert "io_uring" in said, "nothing says why the slower engine is used"


def test_io_uring_refused_and_asked_for(probe, place):
    status, sentence = probe("--no-uring").refused(uri(place / "log", engine="uring"))
    assert "uring" in sentence and "engine=" in sentence


def test_truncated_underneath(probe, place):
    p = probe()
    p.open(uri(place / "log"))
    use(p, count=300)
    os.truncate(place / "log", 3 * MIB)
    hits, wrong = p.ask("get 0 300 100000").split()[1::2]
    assert int(wrong) == 0
    assert p.ask("put 1000 300 100000").startswith("stored")
    hits, wrong = p.ask("get 0 300 100000").split()[1::2]
    assert int(wrong) == 0
    p.ask("flush")
    p.end()
    # What is left is no log of that size, or one with less in it: no wrong byte either way.
    p = probe()
    answer = p.ask("open " + uri(place / "log"))
    if answer == "ok":
        assert p.ask("get 0 300 100000").endswith("wrong 0")
        assert p.ask("get 1000 300 100000").endswith("wrong 0")
    else:
        assert len(answer) > 30
    p.end()


def goes_on_in_ram(probe):
    """What is written to a file that nobody will find again is not durable, and flush says so."""
    assert probe.ask("put 100 40 100000") == "stored 40"
    assert probe.ask("flush") != "status 0"
    assert probe.ask("get 100 40 100000") == "hits 40 wrong 0"
    assert probe.ask("get 0 40 100000").endswith("wrong 0")


def test_replaced_underneath(probe, place):
    p = probe()
    p.open(uri(place / "log"))
    use(p)
    foreign = os.urandom(MIB)
    (place / "other").write_bytes(foreign)
    os.rename(place / "other", place / "log")
    goes_on_in_ram(p)
    p.end()
    status, sentence = probe().refused(uri(place / "log"))
    assert str(place / "log") in sentence
    assert (place / "log").read_bytes() == foreign, "a file that is not ours was overwritten"


def test_removed_underneath(probe, place):
    p = probe()
    p.open(uri(place / "log"))
    use(p)
    os.unlink(place / "log")
    goes_on_in_ram(p)
    p.end()


def test_two_processes(probe, place):
    first, second = probe(), probe()
    first.open(uri(place / "log"))
    use(first)
    begun = time.monotonic()
    status, sentence = second.refused(uri(place / "log"))
    waited = time.monotonic() - begun
    assert status == LOCKED
    assert str(place / "log") in sentence and "process" in sentence
    assert 4 < waited < 8 + STALL, f"waited {waited:.1f} s"
    use(first, first=100)
    first.end()
    second.open(uri(place / "log"))
    assert second.ask("get 100 40 100000") == "hits 40 wrong 0"
    second.end()


def test_second_process_gets_the_log_when_the_first_ends(probe, place):
    first, second = probe(), probe()
    first.open(uri(place / "log"))
    use(first)
    second.process.stdin.write(f"open {uri(place / 'log', lock_wait='60s')}\n")
    time.sleep(1)
    first.process.kill()
    assert second.process.stdout.readline() == "ok\n"
    assert second.ask("get 0 40 100000") == "hits 40 wrong 0"


def test_path_is_a_device_or_pipe(probe, place):
    os.mkfifo(place / "pipe")
    begun = time.monotonic()
    status, sentence = probe().refused(uri(place / "pipe"))
    assert time.monotonic() - begun < 8 + STALL
    assert str(place / "pipe") in sentence
    status, sentence = probe().refused(uri("/dev/null"))
    assert "/dev/null" in sentence


@pytest.mark.parametrize("text,expected", [
    ("embedded://{}/log?rma=16MiB", "ram"),
    ("embedded://{}/log?ram=16MiB&dsik=64MiB", "disk"),
    ("embedded://{}/log?ram=lots", "lots"),
    ("embedded://{}/log?ram=16MiB&engine=urign", "uring"),
    ("embedded://{}/log?ram=1KiB", "ram"),
    ("embedded://{}/log?ram=16MiB&disk=1KiB", "disk"),
    ("embedded://{}/log?ram=16MiB&disk=64MiB&ram=", "ram"),
    ("embedded://host{}/log?ram=16MiB", "three slashes"),
    ("embeded://{}/log", "embedded"),
    ("tcp://somewhere:1234", "somewhere"),
    ("", "embedded"),
    ("embedded://{}/%zz?ram=16MiB", "escape"),
    ("embedded://{}/log?ram=15TiB", "ram"),
])
def test_bad_uri(probe, place, text, expected):
    status, sentence = probe().refused(text.format(place))
    assert expected in sentence
    assert not (place / "log").exists()
