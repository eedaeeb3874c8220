#!/usr/bin/env python3
"""Every header compiles alone and twice; the public one as C99 and C++ too."""
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
from sources import ROOT, files, finish  # noqa: E402

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wundef", "-Wwrite-strings", "-Werror"]
OURS = ["-x", "c", "-std=gnu17", "-D_GNU_SOURCE", *WARNINGS]
ALL = [["gcc", *OURS], ["clang-14", *OURS, "-Wno-unused-function"]]
# In C++ a function that has the name of a struct, which C takes, counts as shadowing it.
PUBLIC = [
    ["gcc", "-x", "c", "-std=c99", "-pedantic", *WARNINGS],
    ["clang-14", "-x", "c", "-std=c99", "-pedantic", *WARNINGS],
    ["gcc", "-x", "c", "-std=c17", "-pedantic", *WARNINGS],
    ["g++", "-x", "c++", "-std=c++11", "-pedantic", *WARNINGS, "-Wno-shadow"],
    ["g++", "-x", "c++", "-std=c++20", "-pedantic", *WARNINGS, "-Wno-shadow"],
    ["clang++-14", "-x", "c++", "-std=c++17", "-pedantic", *WARNINGS],
]
PUBLIC_HEADER = "connector/cairn.h"


def compile_alone(job):
    """The fault of one header under one compiler, or None."""
    path, command = job
    text = f'#include "{path}"\n#include "{path}"\n'
    run = subprocess.run([*command, "-I", ".", "-fsyntax-only", "-"], cwd=ROOT, input=text,
                         capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return None
    first = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip())
    return f"{path} does not compile alone ({command[0]} {command[3]}): {first}"


def main():
    missing = [tool for tool in ("gcc", "g++", "clang-14", "clang++-14") if not shutil.which(tool)]
    if missing:
        finish("headers", 0, [f"{', '.join(missing)} missing: apt-get install g++ clang-14"])
    # The stand-in for Criterion is read in its place only, under its own flags.
    headers = [path for path in files(".h") if "inproc" not in path.parts]
    jobs = [(path, command) for path in headers for command in ALL]
    jobs += [(PUBLIC_HEADER, command) for command in PUBLIC]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [fault for fault in pool.map(compile_alone, jobs) if fault]
    finish("headers alone", len(jobs), faults)


if __name__ == "__main__":
    main()
