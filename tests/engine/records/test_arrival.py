"""What stands in a journal of arrivals beside events, and how little room it takes."""

from engine.records.arrival import Answered, Committed, Died, Replaced, Resumed
from engine.records.codec import decode, encode
from engine.records.version import PolicyVersion


def test_entries_come_back_as_they_were_written():
    version = PolicyVersion(2, 7)
    deaths = Died("generator-0#1"), Replaced("")
    for entry in (Answered(3), *deaths, Committed(version, "digest"), Resumed(version)):
        assert decode(encode(entry)) == entry


def test_the_most_frequent_entry_is_small():
    assert len(encode(Answered(1))) <= 16
