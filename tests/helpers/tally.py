#!/usr/bin/env python3
"""Counts of JUnit files as "passed failed skipped"; names what failed on stderr.

A program that runs Criterion tests counts as that many tests."""

import re
import sys
import xml.etree.ElementTree as ET

SYNTHESIS = re.compile(r"Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)")


def count(case):
    text = "".join(case.itertext())
    found = SYNTHESIS.findall(text)
    bad = case.find("failure") is not None or case.find("error") is not None
    if found:
        tested, passing, failing, crashing = map(int, found[-1])
        failed = min(failing + crashing, tested - passing)
        return passing, max(failed, int(bad)), tested - passing - failed
    skipped = case.find("skipped")
    if skipped is not None:
        # ctest calls a program that it does not find skipped as well.
        lacking = "Unable to find" in skipped.get("message", "") or "Unable to find" in text
        return 0, int(lacking), int(not lacking)
    return int(not bad), int(bad), 0


def main(paths):
    total = [0, 0, 0]
    for path in paths:
        for case in ET.parse(path).iter("testcase"):
            one = count(case)
            total = [a + b for a, b in zip(total, one)]
            if one[1]:
                name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
                print(f"failed: {name}", file=sys.stderr)
    print(*total)


if __name__ == "__main__":
    main(sys.argv[1:])
