"""tests/helpers/again.py: a failure that does not come again is named, any other one stays."""
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
TURN = '''
import pathlib
import pytest

def turn(name):
    path = pathlib.Path(__file__).with_name(name)
    count = int(path.read_text()) if path.exists() else 0
    path.write_text(str(count + 1))
    return count
'''
TESTS = TURN + '''
@pytest.mark.parametrize("way", ["frozen in a load"])
def test_fails_once(way):
    assert turn(way) > 0

def test_fails_and_fails():
    assert turn("other") % 2

def test_passes():
    pass

def test_skips_later():
    if turn("skips"):
        pytest.skip("not now")
    assert False

@pytest.fixture
def late():
    yield
    assert turn("late")

def test_fails_at_its_end(late):
    assert turn("end")
'''
SAYS = '''
def test_that_says_something():
    assert turn("said") > 0, "{}"
'''


def run(folder, text, names, *options):
    """What pytest, again.py and tally.py say of these tests."""
    (folder / "tests").mkdir()
    (folder / "tests/test_it.py").write_text(text)
    report = folder / "report.xml"
    command = [*PYTEST, *options, f"--junitxml={report}", "tests"]
    subprocess.run(command, cwd=folder, check=False, timeout=300)
    return judge(folder, report, PYTEST, names)


def judge(folder, report, command, names):
    unstable = folder / "unstable"
    again = subprocess.run([sys.executable, HELPERS / "again.py", report, unstable, *command],
                           cwd=folder, text=True, capture_output=True, timeout=300)
    assert again.returncode == 0, again.stderr
    said = subprocess.run([sys.executable, HELPERS / "tally.py", f"--unstable={unstable}", report],
                          text=True, capture_output=True, check=True)
    names.extend(unstable.read_text().splitlines())
    return said.stdout.strip(), again.stdout


@pytest.fixture
def names():
    return []


def test_what_passes_twice_is_unstable(tmp_path, names):
    counts, _ = run(tmp_path, TESTS, names)
    assert names == [f"tests.test_it::{test}" for test in (
        "test_fails_once[frozen in a load]", "test_fails_at_its_end")]
    # A test that fails and whose end fails too is two in a report.
    assert counts == "4 2 0"


@pytest.mark.parametrize("words", [
    "wrong bytes in row 3", "ledger.Wrong: 'k' is no value of it", "bytes changed under a lease",
    "==7==ERROR: AddressSanitizer: heap-use-after-free", "WARNING: ThreadSanitizer: data race",
    "x.c:3:4: runtime error: shift", "assert (got == given).all()", "it ended with -11",
    "assert b'one' == b'two'", "page a of kv on rank 0 has other bytes"])
def test_words_about_bytes_are_final(tmp_path, names, words):
    counts, said = run(tmp_path, TURN + SAYS.format(words), names)
    assert counts == "0 1 0" and "says_something is not run again" in said and not names


def test_a_crash_is_final(tmp_path, names):
    kills = "    import os\n    if turn('kills') == 0:\n        os.kill(os.getpid(), 11)\n"
    counts, said = run(tmp_path, TURN + f"def test_that_dies():\n{kills}", names, "-n", "1")
    assert counts == "0 1 0" and "test_that_dies is not run again" in said and not names


@pytest.mark.parametrize("words", ["ram_bytes: 3 < 4", "no hit after 20.11 s", "[6, 6, 0] != [6]"])
def test_other_words_are_not(tmp_path, names, words):
    counts, _ = run(tmp_path, TURN + SAYS.format(words), names)
    assert counts == "1 0 0" and names == ["tests.test_it::test_that_says_something"]


def test_many_failures_are_the_suite_s(tmp_path, names):
    text = "".join(f"def test_{n}():\n    assert False\n" for n in range(6))
    counts, said = run(tmp_path, text, names)
    assert "none is run again" in said and not names and counts == "0 6 0"


def test_a_file_that_cannot_be_imported_fails(tmp_path, names):
    counts, said = run(tmp_path, "import nothing_of_this_name\n", names)
    assert counts == "0 1 0" and "is no test" in said and not names


PROGRAM = """
add_test({name} /bin/sh -c "echo said: {says}
    echo '[====] Synthesis: Tested: 3 | Passing: 2 | Failing: 1 | Crashing: 0'
    test -e {mark} || {{ touch {mark}; exit 1; }}")
"""


@pytest.mark.parametrize("name, says, counts", [
    ("connector/remote", "late", "3 0 0"), ("storage/remote", "late", "2 1 0"),
    ("connector/remote", "WARNING: ThreadSanitizer: data race", "2 1 0")])
def test_programs_in_c_with_servers(tmp_path, names, name, says, counts):
    report = tmp_path / "report.xml"
    (tmp_path / "CTestTestfile.cmake").write_text(
        PROGRAM.format(name=name, says=says, mark=tmp_path / "mark"))
    ctest = ["ctest", "--test-dir", tmp_path]
    subprocess.run([*ctest, "--output-junit", report], check=False, timeout=300)
    assert judge(tmp_path, report, ctest, names)[0] == counts
    assert names == [f"{name}::{name}"] * counts.startswith("3")
