"""The checks of tests/lint find what they are for."""
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADERS = ("base/types.h", "connector/cairn.h", "connector/cairn.map")


@pytest.fixture
def tree(tmp_path):
    """A small repository with the checks in it and no fault."""
    shutil.copytree(ROOT / "tests/lint", tmp_path / "tests/lint",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/helpers").mkdir()
    shutil.copy(ROOT / "tests/helpers/sources.py", tmp_path / "tests/helpers")
    for name in HEADERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def check(tree, name):
    done = subprocess.run([sys.executable, tree / "tests/lint" / name], capture_output=True,
                          text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def write(tree, name, text):
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


CHECKS = sorted(path.name for path in (ROOT / "tests/lint").glob("*.py"))


@pytest.mark.parametrize("name", CHECKS)
def test_no_fault(tree, name):
    code, said = check(tree, name)
    assert code == 0 and "0 faults" in said, said


FAULTS = [
    ("check_layers.py", "storage/a.c", '#include "connector/cairn.h"\n', "storage/ may not know"),
    ("check_layers.py", "base/a.c", '#include "chunking/key.h"\n', "is no file"),
    ("check_layers.py", "storage/a.c", '#include "types.h"\n', "name it from the root"),
    ("check_layers.py", "tools/a.c", '#include "tests/helpers/a.h"\n', "is no file"),
    ("check_layers.py", "storage/a.c", "#include <liburing.h>\n", "only storage/ioq_uring"),
    ("check_layers.py", "storage/a.c", "#  include <openssl/evp.h>\n", "only chunking/"),
    ("check_layers.py", "base/a.c", "#include <zstd.h>\n", "no rule"),
    ("check_layers.py", "base/a.h", '#include "base/a.h"\n', "circle"),
    ("check_headers.py", "base/a.h", "size_t f(void);\n", "does not compile alone"),
    ("check_headers.py", "base/a.h", "struct twice {\n    int x;\n};\n", "does not compile alone"),
    ("check_style.py", "base/a.c", "int x;  \n", "white space"),
    ("check_style.py", "base/a.c", "\tint x;\n", "a tab"),
    ("check_style.py", "base/a.c", "int x;", "no end of line"),
    ("check_style.py", "base/a.c", "int x;\n" * 1001, "1001 lines"),
    ("check_style.py", "base/a.c", "int f(void)\n{\n" + "    ;\n" * 71 + "}\n", "71 lines"),
    ("check_style.py", "base/a.c", f"/* {'x' * 100} */\n", "columns"),
    ("check_style.py", "base/a.c", "// so\n", "comments"),
    ("check_style.py", "base/README.md", "see /home" + "/me/cairn\n", "one machine"),
]


@pytest.mark.parametrize("name, path, text, says", FAULTS, ids=[f"{f[0]}-{f[3]}" for f in FAULTS])
def test_fault_is_found(tree, name, path, text, says):
    write(tree, path, text)
    code, said = check(tree, name)
    assert code == 1 and says in said, said


def test_layer_that_includes_upwards(tree):
    write(tree, "chunking/a.h", "#ifndef A\n#define A\n#endif\n")
    write(tree, "storage/a.h", '#include "chunking/a.h"\n')
    assert check(tree, "check_layers.py")[0] == 0
    write(tree, "transport/a.h", '#include "storage/a.h"\n')
    assert "transport/ may not know storage/" in check(tree, "check_layers.py")[1]


def test_copies_that_differ(tree):
    path = tree / "base/types.h"
    path.write_text(path.read_text().replace("CAIRN_MISS = -1,", "CAIRN_MISS = -9,"))
    code, said = check(tree, "check_types_block.py")
    assert code == 1 and "CAIRN_MISS = -9" in said


@pytest.mark.parametrize("name", ["connector/cairn.h", "connector/cairn.map"])
def test_function_that_only_one_side_knows(tree, name):
    path = tree / name
    path.write_text(path.read_text().replace("cairn_lookup", "cairn_look_up"))
    code, said = check(tree, "check_exports.py")
    assert code == 1 and "cairn_look_up" in said and "cairn_lookup" in said
