"""What the checks in tests/lint share: the repository's files and how a check ends."""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILT = {"build", ".git", "__pycache__", ".cache"}


def files(*suffixes):
    """Paths, from the root, of the files that are or will be in the repository."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT,
            capture_output=True, check=True).stdout.decode().split("\0")
        found = [pathlib.PurePosixPath(name) for name in listed if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        found = [pathlib.PurePosixPath(path.relative_to(ROOT)) for path in ROOT.rglob("*")
                 if not BUILT & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found
                  if (not suffixes or path.suffix in suffixes) and (ROOT / path).is_file())


def finish(what, checked, faults):
    """Prints the faults, one sentence each, and ends the process."""
    name = pathlib.Path(sys.argv[0]).name
    for fault in faults:
        print(f"{name}: {fault}")
    print(f"{name}: {what}: {checked} checked, {len(faults)} faults")
    sys.exit(1 if faults or not checked else 0)
