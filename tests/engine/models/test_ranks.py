"""How ranks meet, talk and lose each other."""

from __future__ import annotations

import math
import socket
from typing import Any

import pytest

from engine.errors import RankError
from engine.models.ranks import ALONE, LOOPBACK, Ranks, Store, interface_towards, join


def talk(ranks: Ranks) -> list[Any]:
    mine = {"rank": ranks.rank, "values": [0.1] * ranks.rank, "odd": math.nan}
    return [ranks.gather(mine), ranks.gather(1 / 3), ranks.first, ranks.alone, ranks.size]


def test_every_rank_hears_every_rank_bit_for_bit(rank_pool: Any) -> None:
    for rank, (told, thirds, first, alone, size) in enumerate(rank_pool.ask(talk, 2)):
        assert [one["values"] for one in told] == [[], [0.1]]
        assert all(math.isnan(one["odd"]) for one in told)
        assert thirds == [1 / 3] * 2
        assert (first, alone, size) == (rank == 0, False, 2)


def leave_early(ranks: Ranks) -> str:
    with ranks.collective("a test"):
        if ranks.first:
            ranks.gather(0)
    return "left"


def test_a_rank_that_is_gone_is_a_named_error_and_no_silence(rank_pool: Any) -> None:
    (value, error), (left, _) = rank_pool.each(leave_early, 2, deadline_s=1.5)
    assert (value, left) == (None, "left")
    assert isinstance(error, RankError)
    assert "rank 0 of 2 lost the others during a test" in str(error)
    assert "learning.rank_deadline_s" in str(error)


def test_who_is_alone_needs_nobody() -> None:
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.alone
    assert ALONE.first
    ALONE.leave()
    with pytest.raises(RuntimeError, match="gloo"), ALONE.collective("anything"):
        raise RuntimeError("gloo")


def test_errors_of_its_own_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), Ranks(0, 2).collective("a test"):
        raise RuntimeError("shapes do not match")
    with pytest.raises(RankError, match="rank 1 of 2"), Ranks(1, 2).collective("a test"):
        raise RuntimeError("[third_party/gloo/transport/tcp/pair.cc:553] Connection closed by peer")


def test_seconds_are_counted_by_lap() -> None:
    ranks = Ranks()
    ranks.waited_s += 1.5
    assert ranks.lap() == 1.5
    assert ranks.lap() == 0.0


def test_a_store_listens_where_it_says_and_nowhere_else() -> None:
    store = Store(LOOPBACK, 2, 5.0)
    host, _, port = store.address.rpartition(":")
    assert host == LOOPBACK
    socket.create_connection((host, int(port)), 2.0).close()
    other = socket.socket()
    other.bind(("127.0.0.2", int(port)))  # taken, did the store listen on every address
    other.close()
    with pytest.raises(RankError, match=r"cannot listen on 192\.0\.2\.77 .*node-ip-address"):
        Store("192.0.2.77", 2, 5.0)


def test_a_rank_that_nobody_meets_gives_up_at_its_deadline() -> None:
    with pytest.raises(RankError, match="rank 1 of 2 lost the others during their meeting"):
        join(f"{LOOPBACK}:{_free_port()}", 1, 2, 1.0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def test_one_machine_stays_on_loopback() -> None:
    assert interface_towards(LOOPBACK) == "lo"


def test_an_address_that_leads_nowhere_has_no_interface() -> None:
    assert interface_towards("255.255.255.255") == ""
