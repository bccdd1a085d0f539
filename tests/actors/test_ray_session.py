"""How Ray is started or joined, and what is said when it is not."""

import re
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.ray_session import RaySession, explain, own_signals, running_address
from engine.config.cluster import ClusterConfig, ClusterKind
from engine.errors import ClusterError

RUN_ID = "0a1b2c3d-4e5f6071"


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"nobody listens at cluster.address='{address}'"):
            RaySession(ClusterConfig(kind=ClusterKind.ray, address=address), "id")


def test_auto_is_the_cluster_of_the_environment(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert running_address(address) == running_address("auto") == address


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


def test_what_listens_but_is_no_ray_is_named(monkeypatch):
    def init(**options):
        raise SystemExit(15)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="does not let this process in"):
            RaySession(ClusterConfig(kind=ClusterKind.ray, address=address), RUN_ID)
