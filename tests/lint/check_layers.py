#!/usr/bin/env python3
"""Who may include whom: base < chunking < storage | transport < connector < tools."""
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
from sources import ROOT, files, finish  # noqa: E402

BELOW = {
    "base": set(),
    "chunking": {"base"},
    "storage": {"base", "chunking"},
    "transport": {"base", "chunking"},
    "connector": {"base", "chunking", "storage", "transport"},
    "tools": {"base", "chunking", "storage", "transport", "connector"},
    "tests": {"base", "chunking", "storage", "transport", "connector", "tools"},
}

# Third-party headers, and the few files that may know them.
THIRD_PARTY = {
    "liburing": r"storage/ioq_uring\.c|tools/bench_[a-z_]+\.c|tests/.*",
    "openssl": r"chunking/[a-z_]+\.c|tools/bench_key\.c|tools/cairnd/strings\.c",
    "xxhash": r"base/hash[a-z0-9_]*\.c",
    "criterion": r"tests/(unit|helpers)/.*",
    "seccomp": r"tests/.*",
    "microhttpd": r"tools/cairnd/http\.c",
}

# All else between angle brackets is the C library, the kernel or the compiler.
SYSTEM = re.compile(
    r"(arpa/inet|assert|cpuid|ctype|dirent|dlfcn|errno|fcntl|getopt|grp|immintrin|emmintrin"
    r"|x86intrin|inttypes|limits|linux/[a-z_]+|malloc|math|netinet/[a-z]+|poll|pthread|pwd|sched"
    r"|semaphore|setjmp|signal|spawn|stdalign|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib"
    r"|stdnoreturn|string|strings|sys/[a-z_]+|syslog|termios|threads|time|unistd|ucontext"
    r"|arm_neon|arm_acle|features|byteswap|endian|execinfo|ftw|glob|wchar|locale)\.h")

PUBLIC_HEADER = "connector/cairn.h"
PUBLIC_MAY_INCLUDE = {"stddef.h", "stdint.h"}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def quoted(path, target):
    """The fault of `path` including "target", or None."""
    layer, other = path.parts[0], pathlib.PurePosixPath(target).parts[0]
    if not (ROOT / target).is_file():
        return f'{path} includes "{target}", which is no file; name it from the root'
    if other != layer and other not in BELOW.get(layer, set()):
        return f'{path} includes "{target}", but {layer}/ may not know {other}/'
    return None


def bracketed(path, target):
    owner = re.split(r"[./]", target)[0]
    if owner in THIRD_PARTY:
        if not re.fullmatch(THIRD_PARTY[owner], str(path)):
            return f"{path} includes <{target}>; only {THIRD_PARTY[owner]} may"
    elif not SYSTEM.fullmatch(target):
        return (f"{path} includes <{target}>, which no rule of tests/lint/check_layers.py knows; "
                "add one if it belongs there")
    return None


def cycle(graph):
    """A list of files that include each other in a circle, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node):] + [node]
        if node in done:
            return None
        path.append(node)
        for child in graph.get(node, ()):
            found = visit(child)
            if found:
                return found
        path.pop()
        done.add(node)
        return None

    for start in graph:
        found = visit(start)
        if found:
            return found
    return None


def main():
    faults, graph, count = [], {}, 0
    for path in files(".c", ".h"):
        if path.parts[0] not in BELOW or "consumer" in path.parts or "inproc" in path.parts:
            continue
        count += 1
        for kind, target in INCLUDE.findall((ROOT / path).read_text()):
            check = quoted if kind == '"' else bracketed
            faults.append(check(path, target))
            if kind == '"':
                graph.setdefault(str(path), []).append(target)
            if str(path) == PUBLIC_HEADER and target not in PUBLIC_MAY_INCLUDE:
                faults.append(f"{path} includes {target}; the public header stands alone")
    circle = cycle(graph)
    if circle:
        faults.append("include circle: " + " -> ".join(circle))
    finish("layers", count, [fault for fault in faults if fault])


if __name__ == "__main__":
    main()
