"""freeze.py: what is asked of a frozen process is not answered."""
from freeze import freeze, go_on


def test_a_frozen_node_says_nothing(node):
    with node.connect() as s:
        for _ in range(100):
            freeze(node.process.pid)
            try:
                s.sendall(b"PING\r\n" * 20)
                s.settimeout(0.01)
                try:
                    assert not s.recv(1000)
                except TimeoutError:
                    pass
            finally:
                go_on(node.process.pid)
            s.settimeout(20)
            said = b""
            while len(said) < len(b"+PONG\r\n" * 20):
                said += s.recv(1000)
            assert said == b"+PONG\r\n" * 20
