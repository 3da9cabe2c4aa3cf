"""
What every `EventLog` does, ours or yours.

Law: only the protocol is used here, and nothing is assumed of offsets but that they grow.
An implementation passes the suite by a subclass whose fixture *log* returns an empty log.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier, Thread
from typing import Any

import attrs
import pytest

from eventbus.errors import ConcurrencyError, DuplicateEventError
from eventbus.event_log import EventLog, Record
from eventbus.testing.contracts._reading import ReadingContract
from eventbus.testing.contracts._records import NOON, offsets, record, records

__all__ = ["EventLogContract"]


class EventLogContract(ReadingContract):
    """
    What every `eventbus.event_log.EventLog` does.

    Fixture to be given: ``log``, an empty log.

    .. versionadded:: 0.1
    """

    # -- append

    def test_an_empty_log_is_empty(self, log: EventLog) -> None:
        """
        Before the first append there is nothing to read.
        """
        assert [] == list(log.read())
        assert 0 == log.last_offset()
        assert 0 == log.stream_version("a")
        assert 0 == log.offset_before(NOON)
        assert 0 == log.prune(before=99)
        assert log.get("event") is None

    def test_a_record_comes_back_whole(self, log: EventLog) -> None:
        """
        A record has every fact that it was appended with, and its offset.
        """
        whole = record(
            name="shop.Bestätigt",
            version=7,
            key="Ä-1 '\"",
            time=NOON + timedelta(microseconds=123_456),
            correlation_id="root",
            causation_id="cause",
            headers={"tenant": "Ü", "": "empty"},
            payload=bytes(range(256)),
        )
        (offset,) = log.append([whole])
        assert [attrs.evolve(whole, offset=offset)] == list(log.read())
        assert dict(whole.headers) == dict(next(log.read()).headers)
        assert log.get(whole.id) == attrs.evolve(whole, offset=offset)

    def test_times_come_back_in_utc(self, log: EventLog) -> None:
        """
        A time of another zone is the same instant, told in UTC.
        """
        log.append([record(time=NOON.astimezone(timezone(timedelta(hours=-5))))])
        (found,) = log.read()
        assert (NOON, timedelta(0)) == (found.time, found.time.utcoffset())

    @pytest.mark.parametrize(
        "time",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(2106, 2, 7, 6, 28, 15, 999_999, tzinfo=UTC),
            datetime(2106, 2, 7, 6, 28, 16, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ],
    )
    def test_a_time_comes_back_to_the_microsecond(self, log: EventLog, time: datetime) -> None:
        """
        However far away it is, a time is kept exactly.
        """
        log.append([record(time=time)])
        assert [time] == [found.time for found in log.read()]

    @pytest.mark.parametrize("payload", [b"", b"\0", b"x" * 1_000_000])
    def test_any_bytes_are_a_payload(self, log: EventLog, payload: bytes) -> None:
        """
        Nothing, a zero byte and a megabyte are stored as they are.
        """
        log.append([record(payload=payload)])
        assert [payload] == [each.payload for each in log.read()]

    def test_offsets_grow(self, log: EventLog) -> None:
        """
        Offsets begin at one or later, and each is greater than those before.
        """
        found = [*log.append([record()]), *log.append(records(3)), *log.append([record()])]
        assert sorted(set(found)) == found
        assert found == offsets(log.read())
        assert found[-1] == log.last_offset()
        assert found[0] >= 1

    def test_no_records_are_no_append(self, log: EventLog) -> None:
        """
        Appending nothing does nothing, whatever version is expected.
        """
        assert [] == log.append([])
        assert [] == asyncio.run(_aappend(log, []))
        assert 0 == log.last_offset()

    def test_a_repeated_id_is_refused(self, log: EventLog) -> None:
        """
        An id that is in the log is refused by name, and nothing is stored.
        """
        log.append([record(id="e-1", key="a")])
        with pytest.raises(DuplicateEventError, match="'e-1'") as refused:
            log.append([record(id="e-1", key="a", payload=b"another")])
        assert "e-1" == refused.value.id
        assert 1 == len(list(log.read()))
        assert 1 == log.stream_version("a")

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_batch_is_stored_whole_or_not(self, log: EventLog, place: int) -> None:
        """
        One repeated id among several keeps all of them out.
        """
        log.append([record(id="taken")])
        batch = records(2, key="a")
        batch.insert(place, record(id="taken", key="a"))
        with pytest.raises(DuplicateEventError, match="'taken'"):
            log.append(batch)
        assert ["taken"] == [each.id for each in log.read()]
        assert 0 == log.stream_version("a")

    def test_a_batch_repeats_no_id(self, log: EventLog) -> None:
        """
        One id twice in a batch is refused by name, and nothing is stored.
        """
        with pytest.raises(DuplicateEventError, match="'twice'"):
            log.append([record(), record(id="twice"), record(id="twice")])
        assert [] == list(log.read())

    def test_a_refused_append_leaves_no_trace(self, log: EventLog) -> None:
        """
        After a refusal the log takes the next append as if nothing had been.
        """
        log.append([record(id="e-1")])
        with pytest.raises(DuplicateEventError):
            log.append([record(id="e-2"), record(id="e-1")])
        log.append([record(id="e-2")])
        assert ["e-1", "e-2"] == [each.id for each in log.read()]

    # -- streams

    def test_a_stream_counts_its_records(self, log: EventLog) -> None:
        """
        The version of a stream is the number of records with its key.
        """
        log.append([record(key="a"), record(), record(key="b"), record(key="a")])
        assert (2, 1, 0) == tuple(log.stream_version(key) for key in ("a", "b", "c"))
        log.append([record(key="")])
        assert 1 == log.stream_version("")

    def test_an_expected_version_is_met(self, log: EventLog) -> None:
        """
        Whoever knows the version of the stream may append to it.
        """
        log.append([record(key="a")], expected_version=0)
        log.append([record(key="a"), record(key="a")], expected_version=1)
        log.append([record(key="b")], expected_version=0)
        log.append([record(key="a")], expected_version=3)
        assert 4 == log.stream_version("a")

    @pytest.mark.parametrize("expected", [0, 1, 3])
    def test_another_version_is_refused(self, log: EventLog, expected: int) -> None:
        """
        A stream that has moved on is named with both versions, and nothing is stored.
        """
        log.append([record(key="a"), record(key="a")])
        with pytest.raises(ConcurrencyError, match="'a'") as refused:
            log.append([record(key="a")], expected_version=expected)
        assert ("a", expected, 2) == (
            refused.value.key,
            refused.value.expected,
            refused.value.actual,
        )
        assert 2 == len(list(log.read()))

    @pytest.mark.parametrize("keys", [("a", "b"), ("a", None), (None,)])
    def test_a_version_is_that_of_one_stream(
        self, log: EventLog, keys: tuple[str | None, ...]
    ) -> None:
        """
        An expected version for several streams, or for none, is refused.
        """
        with pytest.raises(ValueError, match="one key"):
            log.append([record(key=key) for key in keys], expected_version=0)
        assert [] == list(log.read())

    # -- waiting for more

    def test_appends_show_as_changes(self, log: EventLog) -> None:
        """
        The number of changes is the same until something is appended.
        """
        before = log.changes()
        assert before == log.changes()
        log.append([record()])
        after = log.changes()
        assert before != after
        assert after == log.changes()
        log.append(records(3))
        assert after != log.changes()

    def test_listeners_hear_of_appends(self, log: EventLog) -> None:
        """
        A listener is called after each append, when the records can be read, until it stops.
        """
        heard: list[int] = []
        stop = log.on_append(lambda: heard.append(log.last_offset()))
        offset = log.append([record()])[0]
        assert [offset] == heard
        last = log.append(records(3))[-1]
        assert [offset, last] == heard
        asyncio.run(_aappend(log, [record()]))
        assert [offset, last, log.last_offset()] == heard
        stop()
        stop()
        log.append([record()])
        assert 3 == len(heard)

    def test_refused_appends_are_not_heard_of(self, log: EventLog) -> None:
        """
        Nobody is called for what was not stored.
        """
        log.append([record(id="e-1")])
        log.on_append(pytest.fail)
        with pytest.raises(DuplicateEventError):
            log.append([record(id="e-1")])

    def test_a_listener_that_raises_disturbs_nobody(
        self, log: EventLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Its exception is logged; the append has succeeded, and the others are called.
        """
        heard: list[str] = []

        def broken() -> None:
            raise ValueError("broken listener")

        log.on_append(broken)
        log.on_append(lambda: heard.append("heard"))
        log.append([record()])
        assert ["heard"] == heard
        assert "broken listener" in caplog.text

    # -- tasks and threads

    def test_tasks_append_at_once(self, log: EventLog) -> None:
        """
        Tasks that append concurrently get an offset each, and all is stored.
        """

        async def publish() -> list[list[int]]:
            return await asyncio.gather(*(log.aappend([record()]) for _ in range(50)))

        found = [offset for (offset,) in asyncio.run(publish())]
        assert sorted(found) == offsets(log.read())
        assert 50 == len(set(found))

    def test_a_task_is_refused_like_anybody(self, log: EventLog) -> None:
        """
        Of tasks that append concurrently each one fails by itself.
        """
        log.append([record(id="taken", key="a")])

        async def publish() -> list[Any]:
            asked = [
                log.aappend([record(key="b")]),
                log.aappend([record(id="taken")]),
                log.aappend([record(key="a")], expected_version=0),
                log.aappend([record(key="b")]),
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

        first, second, third, fourth = asyncio.run(publish())
        assert (DuplicateEventError, ConcurrencyError) == (type(second), type(third))
        assert sorted([*first, *fourth]) == offsets(log.read(key="b"))
        assert 3 == len(list(log.read()))

    def test_threads_append_at_once(self, log: EventLog) -> None:
        """
        Whatever threads append is stored once, whole, and in each thread's order.
        """
        barrier, errors = Barrier(6, timeout=30), list[BaseException]()

        def publish(name: str) -> None:
            try:
                barrier.wait()
                for turn in range(15):
                    pair = [record(id=f"{name}{turn}{half}", key=name) for half in "xy"]
                    first, second = log.append(pair)
                    assert first < second
                    with pytest.raises(DuplicateEventError):
                        log.append([record(id="taken"), pair[0]])
            except BaseException as error:  # pragma: no cover - only where the test fails
                errors.append(error)

        threads = [Thread(target=publish, args=(name,), daemon=True) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [] == errors
        assert 6 * 30 == len(list(log.read()))
        for name in "abcdef":
            expected = [f"{name}{turn}{half}" for turn in range(15) for half in "xy"]
            assert expected == [each.id for each in log.read(key=name)]
            assert 30 == log.stream_version(name)

    def test_of_many_threads_one_meets_the_version(self, log: EventLog) -> None:
        """
        However many expect the same version at once, one appends and the others are refused.
        """
        for version in range(10):
            barrier, met = Barrier(5, timeout=30), list[bool]()

            def publish(
                version: int = version, barrier: Barrier = barrier, met: list[bool] = met
            ) -> None:
                barrier.wait()
                try:
                    log.append([record(key="a")], expected_version=version)
                    met.append(True)
                except ConcurrencyError:
                    met.append(False)

            threads = [Thread(target=publish, daemon=True) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert [False] * 4 + [True] == sorted(met)
        assert 10 == log.stream_version("a")


async def _aappend(log: EventLog, records: list[Record]) -> list[int]:
    return await log.aappend(records, expected_version=None)
