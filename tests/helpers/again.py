#!/usr/bin/env python3
"""Runs the failed tests of a report again, each alone and twice, and names those that then pass:
they are unstable, which is a fault of a test and no reason to stop. Words about bytes, a sanitizer
or a crash are no such thing, and of many failures the suite itself is the cause.

usage: again.py REPORT UNSTABLE COMMAND...: COMMAND is pytest or ctest without a test; the names go
to the file UNSTABLE, and what happens to standard output."""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import tally

MOST = 5
TIMES = 2
# Tests in C that real servers have a part in; the others go by simulated devices and seeds.
PROCESSES = ("connector/", "transport/", "tools/")
NEVER = re.compile(
    r"\bbytes?\b|\bwrong\b|Wrong\b|\bdiffers?\b|corrupt|another record|\bgeneration\b"
    r"|sanitizer|runtime error|\.all\(\)|array_equal|Mismatched elements"
    r"|b['\"].* [!=]= b['\"]|Segmentation|core dumped|SIG(?:SEGV|BUS|ABRT|ILL)|CRASH!"
    r"|^worker '\w+' crashed"
    r"|value_check|memcmp|CORRUPT"
    r"|(?<![\w.])-(?:4|6|7|8|11)\b", re.IGNORECASE | re.MULTILINE)


def failures(report):
    """What each failed test said, by its name in the report."""
    found = {}
    for case in ET.parse(report).iter("testcase"):
        for bad in (*case.findall("failure"), *case.findall("error")):
            name = tally.name_of(case)
            said = [bad.get("message", ""), bad.text or ""]
            said += [out.text or "" for out in case.findall("system-out")]
            found[name] = found.get(name, "") + "\n".join(said)
    return found


def node_id(name):
    """tests.integration.test_cli::test_help -> tests/integration/test_cli.py::test_help"""
    module, _, test = name.partition("::")
    return f"{module.replace('.', '/')}.py::{test}"


def program(name):
    """connector/queue::connector/queue -> connector/queue"""
    return name.partition("::")[2]


def passes(name, command):
    if command[0] == "ctest":
        only = [*command, "--no-tests=error", "-R", f"^{re.escape(program(name))}$"]
        return subprocess.run(only, check=False).returncode == 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "again.xml"
        done = subprocess.run([*command, f"--junitxml={report}", node_id(name)], check=False)
        if done.returncode or not report.exists():
            return False
        counts = [tally.count(case) for case in ET.parse(report).iter("testcase")]
        return counts == [(1, 0, 0)]


def why_not(name, said, command):
    """Why a test is not run again, if so."""
    about = NEVER.search(said)
    if about:
        return f"its failure speaks of {about.group()!r}"
    if "::" not in name:
        return "it is no test"
    if command[0] == "ctest" and not program(name).startswith(PROCESSES):
        return "no other process has a part in it"
    return ""


def main(report, unstable, *command):
    failed = failures(report)
    unstable = Path(unstable)
    unstable.write_text("")
    if len(failed) > MOST:
        print(f"{len(failed)} tests failed, more than {MOST}: none is run again")
        return
    for name, said in failed.items():
        refused = why_not(name, said, command)
        if refused:
            print(f"{name} is not run again: {refused}", flush=True)
            continue
        print(f"{name} failed and is run again alone, {TIMES} times", flush=True)
        if all(passes(name, command) for _ in range(TIMES)):
            with unstable.open("a") as names:
                names.write(name + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
