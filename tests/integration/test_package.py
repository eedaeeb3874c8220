"""What a user installs: headers, libraries, pkg-config, and nothing exported beside the API."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("CAIRN_BUILD", ROOT / "build"))
CONSUMER = ROOT / "tests/lint/consumer/consumer.c"
sys.path.insert(0, str(ROOT / "tests/lint"))
import check_exports  # noqa: E402

C99 = ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
CXX = ["g++", "-x", "c++", "-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror"]


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          check=False, **more)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    if not (BUILD / "CMakeCache.txt").is_file():
        pytest.fail(f"{BUILD} is not built; run deploy/run build, or name another in CAIRN_BUILD")
    where = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", BUILD, "--prefix", where)
    return where


def library_dir(prefix):
    found = list(prefix.rglob("libcairn.a"))
    assert len(found) == 1
    return found[0].parent


def pkg_config(prefix, *what):
    path = library_dir(prefix) / "pkgconfig"
    return run("pkg-config", *what, "cairn",
               env={**os.environ, "PKG_CONFIG_PATH": str(path)}).split()


def defined(tool, *libraries):
    """Names that the dynamic table defines, without their versions."""
    lines = run(tool, "-D", "--defined-only", *libraries).splitlines()
    return {line.split()[2].split("@")[0] for line in lines if line.split()[1] != "A"}


def test_installed_files(prefix):
    library = library_dir(prefix)
    assert (prefix / "include/cairn.h").read_bytes() == (ROOT / "connector/cairn.h").read_bytes()
    assert (library / "libcairn.so").is_symlink()
    assert (library / "libcairn.so.0").exists()
    assert [path.name for path in (prefix / "include").rglob("*.h")] == ["cairn.h"]


def test_pkg_config_agrees_with_the_header(prefix):
    version = re.search(r'CAIRN_VERSION_STRING "(.*)"', (prefix / "include/cairn.h").read_text())
    assert pkg_config(prefix, "--modversion") == [version[1]]
    text = (library_dir(prefix) / "pkgconfig/cairn.pc").read_text()
    assert str(prefix) not in text and str(ROOT) not in text


def test_prefix_can_be_moved(prefix, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(prefix, moved, symlinks=True)
    flags = " ".join(pkg_config(moved, "--cflags", "--libs"))
    assert str(prefix) not in flags
    directory = re.search(r"-L(\S+)", flags)[1]
    assert pathlib.Path(directory).resolve() == library_dir(moved)


@pytest.mark.parametrize("compiler", [C99, CXX], ids=["c99", "c++11"])
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_consumer(prefix, tmp_path, compiler, kind):
    program = tmp_path / "consumer"
    library = library_dir(prefix)
    flags = pkg_config(prefix, "--cflags", "--libs")
    if kind == "static":
        flags = pkg_config(prefix, "--static", "--cflags", "--libs")
        flags = [str(library / "libcairn.a") if flag == "-lcairn" else flag for flag in flags]
    run(*compiler, CONSUMER, "-x", "none", *flags, "-o", program)
    needed = run("readelf", "-d", program)
    assert ("libcairn.so.0" in needed) == (kind == "shared")
    said = run(program, env={**os.environ, "LD_LIBRARY_PATH": str(library)}, timeout=60)
    assert said.strip().endswith("all chunks came back")


def test_exports_are_the_header(prefix):
    functions = defined("nm", library_dir(prefix) / "libcairn.so")
    assert functions == check_exports.declared()


def test_every_export_has_a_version(prefix):
    listed = run("readelf", "--wide", "--dyn-syms", library_dir(prefix) / "libcairn.so")
    versions = dict(re.findall(r"(cairn_\w+)@@(\w+)", listed))
    assert versions.keys() == check_exports.declared()
    assert set(versions.values()) == {"CAIRN_0"}


def test_static_library_shows_the_same_names(prefix):
    lines = run("nm", "--extern-only", "--defined-only", library_dir(prefix) / "libcairn.a")
    names = {line.split()[2] for line in lines.splitlines() if len(line.split()) == 3}
    assert names == check_exports.declared()
