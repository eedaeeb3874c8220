"""Real engines as programs of this folder, each of the vLLM that a test names."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PYTHONS = {"0.28": Path(sys.executable), "0.32": ROOT / "build/venv-0.32/bin/python"}


def model() -> Path:
    """The folder of the real model."""
    folder = ROOT / "build/model"
    if not (folder / "config.json").exists():
        pytest.fail(f"{folder} is missing; tests/run engine or deploy/run converts it")
    return folder


def answers(version, program, *arguments, log=None, **env):
    """What the program prints, a JSON object a line. log: a file for what its engine logs."""
    python = PYTHONS[version]
    if not python.exists():
        pytest.fail(f"{python} is missing; tests/run engine installs it")
    path = f"{ROOT / 'connector/python'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [python, HERE / program, *map(str, arguments)], text=True, timeout=800,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=path, VLLM_ENABLE_V1_MULTIPROCESSING="0",
                 HF_HUB_OFFLINE="1", PYTHONHASHSEED="0", VLLM_CPU_KVCACHE_SPACE="1",
                 VLLM_NO_USAGE_STATS="1") | env)
    if log:
        log.write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def same(a, b):
    """Bit for bit."""
    return a["tokens"] == b["tokens"] and a["logprobs"] == b["logprobs"]
