"""How Ray is started or joined, and what is said when it is not."""

import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import ray_session
from actors.ray_session import RaySession, explain, own_signals, running_address
from engine.config.cluster import ClusterConfig, ClusterKind
from engine.errors import ClusterError

RUN_ID = "0a1b2c3d-4e5f6071"
A_HEAD = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])
"""The first words of a gRPC server: a frame of settings."""


@contextmanager
def listener(says: bytes | None) -> Iterator[str]:
    """The address of one that answers every greeting so; None: it listens, and is silent."""
    def greet() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            with connection:
                connection.recv(9)
                connection.sendall(says or b"")
                connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        if says is not None:
            threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"nobody listens at cluster.address='{address}'"):
            RaySession(ClusterConfig(kind=ClusterKind.ray, address=address), "id")


def test_auto_is_the_cluster_of_the_environment(monkeypatch):
    with listener(A_HEAD) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert running_address(address) == running_address("auto") == address


@pytest.mark.parametrize("noted", [False, True])
def test_an_address_that_auto_found_is_told_with_where_it_was_found(monkeypatch, noted):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", "" if noted else address)
        monkeypatch.setattr(Path, "exists", lambda path: True)
        monkeypatch.setattr(Path, "read_text", lambda path: f"{address}\n")
        source = f"'{address}' of /tmp/ray/ray_current_cluster" if noted else f"RAY_ADDRESS='{address}'"
        with pytest.raises(ClusterError, match=re.escape(f"at {source} (for cluster.address='auto'), [Errno")):
            running_address("auto")


@pytest.mark.parametrize("told", ["http://127.0.0.1:8265", "https://somewhere:8265/", "auto"])
def test_auto_is_what_was_noted_where_the_environment_names_a_dashboard(monkeypatch, told):
    with listener(A_HEAD) as address:
        monkeypatch.setenv("RAY_ADDRESS", told)
        monkeypatch.setattr(Path, "exists", lambda path: True)
        monkeypatch.setattr(Path, "read_text", lambda path: f"{address}\n")
        assert running_address("auto") == address
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ClusterError, match=f"neither in RAY_ADDRESS='{told}' nor started"):
        running_address("auto")


def test_an_address_of_rays_client_is_no_cluster_to_join(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS='ray://.*Ray's client"):
        running_address("auto")


@pytest.mark.parametrize("says", [None, b"", b"HTTP/1.1 400 Bad Request\r\n"])
def test_what_listens_but_does_not_answer_as_a_head_is_named(monkeypatch, says):
    monkeypatch.setattr(ray_session, "CONNECT_DEADLINE_S", 0.2)
    with listener(says) as address, pytest.raises(ClusterError, match="does not answer as a Ray head does"):
        RaySession(ClusterConfig(kind=ClusterKind.ray, address=address), RUN_ID)


def test_who_speaks_tls_is_not_greeted_in_the_clear(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listener(None) as address:
        assert running_address(address) == address


def test_auto_without_a_cluster_says_how_to_start_one(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ClusterError, match=r"'auto' finds no cluster to join, .*ray start --head"):
        running_address("auto")


@pytest.mark.parametrize(("error", "text"), [
    (RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.59"), "other versions .* install the"),
    (ConnectionError("Failed to connect to Ray cluster"), "does not let this process in .* RAY_AUTH_TOKEN_PATH"),
    (ValueError("odd"), "Ray did not start with cluster.address='a:1': odd"),
])
def test_a_refusal_of_ray_becomes_a_sentence(error, text):
    assert re.search(text, explain("a:1", error))


def test_an_object_store_larger_than_shared_memory_is_refused():
    with pytest.raises(ClusterError, match=r"object_store_mib=1000000000 needs .* lower it"):
        RaySession(ClusterConfig(kind=ClusterKind.ray, object_store_mib=10**9), "id")


def test_signal_handlers_survive_a_start_that_takes_them():
    before = signal.getsignal(signal.SIGTERM)
    with own_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_slow_start_is_tried_again_and_leaves_nothing(monkeypatch):
    folders = []

    def init(**options):
        folders.append(Path(options["_temp_dir"]).parent)
        assert (folders[-1] / "token").stat().st_mode & 0o777 == 0o600
        if len(folders) == 1:
            raise Exception("The current node timed out during startup.")
        raise ValueError("something else")

    # A stand-in: the real one reads its token settings once, when it is imported, and later tests need them.
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    with pytest.raises(ClusterError, match="something else"):
        RaySession(ClusterConfig(kind=ClusterKind.ray, object_store_mib=80), RUN_ID)
    assert len(set(folders)) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_head_that_lets_nobody_in_is_named(monkeypatch):
    def init(**options):
        raise SystemExit(15)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    with listener(A_HEAD) as address, pytest.raises(ClusterError, match="does not let this process in"):
        RaySession(ClusterConfig(kind=ClusterKind.ray, address=address), RUN_ID)
