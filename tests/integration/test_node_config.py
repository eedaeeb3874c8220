"""What cairnd is told: file, environment, command line, CONFIG; and what it says of mistakes."""

import os
import subprocess

import pytest
import redis


@pytest.fixture
def run(cairnd):
    def call(*args, env=None):
        return subprocess.run([str(cairnd), *map(str, args)], capture_output=True, text=True,
                              timeout=60, env={**os.environ, **(env or {})})

    return call


def effective(run, *args, env=None) -> dict[str, str]:
    done = run(*args, "--print-config", env=env)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def refused(run, *args, env=None) -> str:
    done = run(*args, env=env)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("cairnd: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_help_names_every_option(run):
    text = run("--help").stdout
    for name in effective(run, "--config="):
        assert f"--{name} " in text, name
    assert run("-h").stdout == text
    assert run("--version").stdout.startswith("cairnd ")


def test_defaults_are_the_embedded_ones(run):
    got = effective(run, "--config=")
    assert got["ram"] == "1GiB" and got["disk"] == "8GiB"
    assert got["bind"] == "127.0.0.1" and got["port"] == "7379"
    assert got["disk-path"] == '""'


def test_what_is_printed_is_taken_back(run, place):
    file = place / "a b.conf"
    first = run("--config=", "--ram=96MiB", "--socket=", "--spin=0", "--print-config").stdout
    file.write_text(first)
    assert run(f"--config={file}", "--print-config").stdout == first


def test_later_sources_win(run, place):
    file = place / "cairnd.conf"
    file.write_text("# the store\n\n  ram 48MiB\nworkers\t3\nlog-level=debug\r\nport 1111 \n")
    got = effective(run, f"--config={file}")
    assert (got["ram"], got["workers"], got["log-level"], got["port"]) == (
        "48MiB", "3", "debug", "1111")
    env = {"CAIRN_CONFIG": str(file), "CAIRN_WORKERS": "5", "CAIRN_CLIENTS_MAX": "77"}
    got = effective(run, env=env)
    assert (got["ram"], got["workers"], got["clients-max"]) == ("48MiB", "5", "77")
    got = effective(run, "--workers", "6", "--ram=32MiB", env=env)
    assert (got["ram"], got["workers"], got["clients-max"]) == ("32MiB", "6", "77")


def test_a_bad_file_is_named_with_its_line(run, place):
    file = place / "cairnd.conf"
    for text, wanted in [
        ("ram 1GiB\nprot 7379\n", [f"{file}:2:", "unknown option 'prot'", "'port'"]),
        ("ram\n", [f"{file}:1:", "'ram' has no value"]),
        ("ram lots\n", [f"{file}:1:", "'lots' is not a size"]),
        ("write throguh\n", [f"{file}:1:", "did you mean 'through'"]),
        ("config /x\n", [f"{file}:1:", "cannot stand in it"]),
        ("ram 1GiB\0\n", ["zero byte"]),
        ("#" * 70000, ["larger than 65536 bytes"]),
    ]:
        file.write_text(text)
        said = refused(run, f"--config={file}")
        assert all(part in said for part in wanted), said


def test_the_named_file_must_be_there(run, place):
    said = refused(run, f"--config={place}/none.conf")
    assert f"{place}/none.conf" in said and "--config" in said
    assert "Is a directory" in refused(run, f"--config={place}")


@pytest.mark.parametrize("args, parts", [
    (["--prot=1"], ["unknown option 'prot'", "'port'"]),
    (["port"], ["'port' is no option", "--help"]),
    (["--port"], ["'--port' needs a value"]),
    (["--port=70000"], ["out of range", "65535"]),
    (["--port=80x"], ["not a whole number"]),
    (["--ram=1"], ["out of range", "8MiB"]),
    (["--bind=0.0.0.0"], ["0.0.0.0", "of this machine", "127.0.0.1"]),
    (["--bind=192.168.1.1"], ["192.168.1.1", "of this machine"]),
    (["--bind=::"], ["of this machine"]),
    (["--socket=relative.sock"], ["relative.sock", "absolute path"]),
    (["--socket=/" + "x" * 200], ["socket"]),
    (["--port=0", "--socket="], ["nobody could connect"]),
    (["--port=7380"], ["both 7380"]),
    (["--allow-uids=root"], ["allow-uids", "user numbers"]),
    (["--allow-uids=1,"], ["allow-uids"]),
    (["--write=never"], ["'write'", "through"]),
    (["--idle-timeout=soon"], ["'soon' is not a duration"]),
])
def test_bad_options_are_sentences(run, args, parts):
    said = refused(run, "--config=", *args)
    assert all(part in said for part in parts), said


def test_the_environment_is_named(run):
    said = refused(run, "--config=", env={"CAIRN_PORT": "tcp://10.0.0.1:80"})
    assert "from the environment" in said and "'port'" in said


def test_config_get(node):
    r = node.redis(decode_responses=True)
    assert r.config_get("port") == {"port": str(node.port)}
    assert r.config_get("RAM") == {"ram": "64MiB"}
    got = r.config_get("*-timeout")
    assert set(got) == {"idle-timeout", "stall-timeout", "io-timeout"}
    assert r.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}
    assert r.config_get("maxmemory")["maxmemory"] == str(64 << 20)
    assert r.config_get("nothing*") == {}


def test_config_set(node):
    r = node.redis(decode_responses=True)
    assert r.config_set("output-max", "1MiB")
    assert r.config_get("output-max")["output-max"] == "1MiB"
    assert r.config_set("idle-timeout", "90s", "stall-timeout", "10s")
    assert r.config_get("*-timeout")["stall-timeout"] == "10s"
    for name, value, wanted in [
        ("port", "1", "can't set immutable config"),
        ("output-max", "much", "'much' is not a size"),
        ("maxmemory", "1", "Unknown option"),
    ]:
        with pytest.raises(redis.ResponseError, match=wanted):
            r.config_set(name, value)
    # One bad pair, and nothing of the others counts.
    with pytest.raises(redis.ResponseError, match="related to argument 'workers'"):
        r.execute_command("CONFIG", "SET", "output-max", "2MiB", "workers", "9")
    assert r.config_get("output-max")["output-max"] == "1MiB"
    with pytest.raises(redis.ResponseError, match="configuration file"):
        r.config_rewrite()
    with pytest.raises(redis.ResponseError, match="wrong number of arguments for 'config.set'"):
        r.execute_command("CONFIG", "SET", "output-max")
    assert r.config_resetstat()


def test_log_level_changes_while_it_runs(node):
    r = node.redis()
    before = node.said()
    r.config_set("log-level", "error")
    r.config_set("spin", "0")
    assert "CONFIG SET spin" not in node.said()[len(before):]
    r.config_set("log-level", "info")
    r.config_set("spin", "50us")
    assert "CONFIG SET spin 50us" in node.said()
