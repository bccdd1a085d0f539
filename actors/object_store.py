"""Ray's object store as the weight channel wants it: shelves of buckets that every machine can read.

The learner owns the objects; a small actor beside it, the librarian, knows which lie on which shelf and lends them
to receivers, so that Ray counts who holds what and frees an object when the shelf is cleared and its readers are
done. The librarian dies with the learner, whose child it is; should it die alone, the learner cannot publish any
more, which is a death of the learner.
"""

from __future__ import annotations

import time
from typing import Any

from engine.config.cluster import ClusterKind, WeightChannelKind
from engine.config.run import RunConfig
from engine.errors import ActorError, WeightChannelError
from engine.weights.object_store import Bytes, LocalStore, ObjectStore


class Librarian:
    """Which objects lie on which shelf."""

    def __init__(self) -> None:
        self._shelves: dict[str, list[Any]] = {}

    def keep(self, shelf: str, references: list[Any]) -> None:
        """Append objects, given as references within a list so that they are not fetched."""
        self._shelves.setdefault(shelf, []).extend(references)

    def lend(self, shelf: str) -> list[Any] | None:
        """The references of a shelf; None where there is none."""
        return self._shelves.get(shelf)

    def clear(self, shelf: str) -> None:
        """Forget a shelf."""
        self._shelves.pop(shelf, None)


class _BorrowedShelf:
    """See Shelf: references that Ray counts as held until this is let go."""

    def __init__(self, ray: Any, references: list[Any], deadline_s: float) -> None:
        self._ray, self._references, self._deadline = ray, references, time.monotonic() + deadline_s

    def take(self, index: int) -> Bytes:
        """See Shelf."""
        try:
            left = max(0.0, self._deadline - time.monotonic())
            found: Bytes = self._ray.get(self._references[index], timeout=left)
        except (IndexError, self._ray.exceptions.RayError) as error:
            raise WeightChannelError(f"bucket {index} did not arrive: {error}") from error
        return found


class RayStore:
    """See ObjectStore: the store of the Ray that this process lives in."""

    def __init__(self, deadline_s: float) -> None:
        """Needs a Ray that this process is part of; each answer may take ``deadline_s`` seconds."""
        import ray

        self._ray, self._deadline_s = ray, deadline_s
        self._name = ""
        self._librarian: Any = None

    def put(self, shelf: str, data: Bytes) -> None:
        """See ObjectStore.

        Raises:
            ActorError: the librarian is gone or silent, as when this node leaves: a death of the learner.
        """
        errors = self._ray.exceptions
        try:
            if self._librarian is None:
                self._hire(librarian_of(shelf))
            self._ask("keep", shelf, [self._ray.put(data)])
        except (errors.ObjectStoreFullError, errors.OutOfDiskError) as error:
            raise WeightChannelError(
                f"a bucket of {data.nbytes} bytes cannot be put into Ray's object store ({error}): raise "
                "cluster.object_store_mib to more than two versions of the weights"
            ) from error
        except (errors.RayError, OSError) as error:  # OSError: the store's end of a socket is gone
            raise _death(error) from error

    def look(self, shelf: str, deadline_s: float) -> _BorrowedShelf:
        """See ObjectStore."""
        try:
            if self._name != librarian_of(shelf):
                self._librarian = self._ray.get_actor(librarian_of(shelf))
                self._name = librarian_of(shelf)
            references = self._ask("lend", shelf)
        except (ValueError, self._ray.exceptions.RayError) as error:
            raise WeightChannelError(f"the learner's end of the weight channel is gone: {error}") from error
        if references is None:
            raise WeightChannelError(f"{shelf} is gone: it was retired; ask for the current manifest")
        self._ray.wait(references, num_returns=len(references), timeout=0, fetch_local=True)  # all set out now
        return _BorrowedShelf(self._ray, references, deadline_s)

    def clear(self, shelf: str) -> None:
        """See ObjectStore.

        Raises:
            ActorError: the librarian does not answer: a death of the learner.
        """
        if self._librarian is None:
            return
        try:
            self._ask("clear", shelf)
        except self._ray.exceptions.ActorDiedError:
            return  # who is dead holds nothing; the next put says that it is dead
        except self._ray.exceptions.RayError as error:
            raise _death(error) from error

    def close(self) -> None:
        """See ObjectStore."""
        if self._librarian is not None:
            self._ray.kill(self._librarian, no_restart=True)
        self._librarian = None

    def _hire(self, name: str) -> None:
        """Start the librarian on this very node: no other node that leaves may take it along."""
        ray = self._ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        made = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Librarian)
        self._name, self._librarian = name, made.options(name=name).remote()

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._ray.get(getattr(self._librarian, method).remote(*arguments), timeout=self._deadline_s)


def _death(error: Exception) -> ActorError:
    """What ends this life of the run; the next one brings a learner and a librarian of its own."""
    return ActorError("learner", "publish", "the librarian of the weight channel, or the object store beside it, is "
                                            f"gone or does not answer ({error})")


def librarian_of(shelf: str) -> str:
    """The name of the actor that knows a shelf: one for each sender."""
    return "weights-" + shelf.rpartition("/")[0].replace("/", "-")


def open_object_store(config: RunConfig) -> ObjectStore | None:
    """The store of channel ``object_store`` where its actors live; None for the other channels."""
    if config.weights.channel is not WeightChannelKind.object_store:
        return None
    return LocalStore() if config.cluster.kind is ClusterKind.serial else RayStore(config.weights.deadline_s)
