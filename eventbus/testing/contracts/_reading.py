"""
What every `EventLog` does when it is read and pruned.

Law: only the protocol is used here. Ten records differ in what one can ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pytest

from eventbus.event_log import EventLog
from eventbus.testing.contracts._records import NOON, minutes, offsets, record, records

__all__ = ["ReadingContract"]

# What is read of ten records; the clock was set back before the fourth.
MINUTES = (0, 1, 2, 1, 2, 3, 4, 5, 6, 7)
READINGS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ({"after": 7}, [8, 9, 10]),
    ({"after": 10}, []),
    ({"after": 99}, []),
    ({"until": 3}, [1, 2, 3]),
    ({"until": 0}, []),
    ({"after": 3, "until": 6}, [4, 5, 6]),
    ({"after": 6, "until": 3}, []),
    ({"since": minutes(5)}, [8, 9, 10]),
    ({"since": minutes(2)}, [3, 5, 6, 7, 8, 9, 10]),
    ({"before": minutes(2)}, [1, 2, 4]),
    ({"since": minutes(1), "before": minutes(3)}, [2, 3, 4, 5]),
    ({"since": minutes(5).astimezone(timezone(timedelta(hours=9)))}, [8, 9, 10]),
    ({"names": ["odd"]}, [1, 3, 5, 7, 9]),
    ({"names": {"odd", "even"}, "after": 8}, [9, 10]),
    ({"names": ["Odd", "'; DROP TABLE eventbus_events; --"]}, []),
    ({"names": []}, []),
    ({"key": "a"}, [3, 6, 9]),
    ({"key": "a", "after": 3, "names": ["odd"]}, [9]),
    ({"key": "none"}, []),
    ({"key": ""}, []),
    ({"limit": 3}, [1, 2, 3]),
    ({"limit": 99, "after": 8}, [9, 10]),
    ({"limit": 2, "key": "a", "after": 3}, [6, 9]),
]

each_reading = pytest.mark.parametrize(("conditions", "expected"), READINGS)


class ReadingContract:
    @pytest.fixture
    def log(self) -> EventLog:  # pragma: no cover - overridden
        raise NotImplementedError("a subclass says how its log is made")

    @pytest.fixture
    def ten(self, log: EventLog) -> EventLog:
        for number, minute in enumerate(MINUTES, start=1):
            name = "odd" if number % 2 else "even"
            key = "a" if number % 3 == 0 else None
            log.append([record(name=name, key=key, time=minutes(minute))])
        return log

    # -- read

    @each_reading
    def test_what_meets_all_conditions_is_read(
        self, ten: EventLog, conditions: dict[str, Any], expected: list[int]
    ) -> None:
        """
        Conditions add up, and records come in the order of their offsets.
        """
        assert expected == offsets(ten.read(**conditions))

    @each_reading
    def test_backwards_is_the_other_way_round(
        self, ten: EventLog, conditions: dict[str, Any], expected: list[int]
    ) -> None:
        """
        Backwards the greatest offset comes first, and a limit counts from there.
        """
        limit = conditions.get("limit")
        unlimited = {name: value for name, value in conditions.items() if name != "limit"}
        whole = offsets(ten.read(**unlimited))[::-1]
        assert whole[:limit] == offsets(ten.read(backwards=True, **conditions))

    def test_long_readings_are_complete(self, log: EventLog) -> None:
        """
        Each of many records comes once, in both directions, with and without a limit.
        """
        found = log.append(records(1_300, key="a"))
        assert found == offsets(log.read())
        assert found == offsets(log.read(key="a"))
        assert found[::-1] == offsets(log.read(backwards=True))
        assert found[:1_200] == offsets(log.read(limit=1_200))
        assert found[100:][::-1] == offsets(log.read(backwards=True, limit=1_200))

    def test_a_reader_takes_its_time(self, log: EventLog) -> None:
        """
        What is appended or pruned while somebody reads does no harm to what is read.
        """
        found = log.append(records(700))
        reading = log.read()
        first = offsets(islice(reading, 10))
        later = log.append(records(3))
        log.prune(before=found[5])
        rest = offsets(reading)
        assert found == (first + rest)[: len(found)]
        assert [] == [each for each in rest[len(found) - 10 :] if each not in later]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_an_empty_reading_is_refused(self, log: EventLog, limit: int) -> None:
        """
        A limit that leaves no room for a record is refused at once.
        """
        with pytest.raises(ValueError, match="limit"):
            log.read(limit=limit)

    def test_a_time_without_a_zone_is_refused(self, log: EventLog) -> None:
        """
        A naive time could mean anything.
        """
        naive = NOON.replace(tzinfo=None)
        asks: list[Callable[[], object]] = [
            lambda: log.read(since=naive),
            lambda: log.read(before=naive),
            lambda: log.offset_before(naive),
            lambda: log.prune(before=naive),
        ]
        for ask in asks:
            with pytest.raises(ValueError, match="time zone"):
                ask()

    def test_a_record_is_found_by_its_id(self, ten: EventLog) -> None:
        """
        An id leads to its record, and an unknown one to none.
        """
        fourth = list(ten.read())[3]
        assert fourth == ten.get(fourth.id)
        assert ten.get("unknown") is None

    def test_correlated_records_are_found(self, log: EventLog) -> None:
        """
        A root, and all it led to, come in the order of their offsets; nothing else does.
        """
        log.append(
            [
                record(id="root"),
                record(id="other"),
                record(id="child", correlation_id="root", causation_id="root"),
                record(id="stranger", correlation_id="outside"),
                record(id="grandchild", correlation_id="root", causation_id="child"),
            ]
        )
        assert ["root", "child", "grandchild"] == [each.id for each in log.correlated("root")]
        assert ["stranger"] == [each.id for each in log.correlated("outside")]
        assert [] == log.correlated("child")

    @pytest.mark.parametrize(
        ("instant", "expected"),
        [
            (minutes(-1), 0),
            (minutes(0), 0),
            (minutes(0.5), 1),
            (minutes(2), 2),
            (minutes(3), 5),
            (minutes(7), 9),
            (minutes(8), 10),
        ],
    )
    def test_an_instant_has_an_offset(
        self, ten: EventLog, instant: datetime, expected: int
    ) -> None:
        """
        Reading after it begins with the first record of that time or later.
        """
        assert expected == ten.offset_before(instant)

    # -- prune

    def test_old_records_are_pruned(self, ten: EventLog) -> None:
        """
        What is before an offset goes, and the rest stays as it is.
        """
        gone = next(ten.read())
        assert 6 == ten.prune(before=7)
        assert [7, 8, 9, 10] == offsets(ten.read())
        assert [9] == offsets(ten.read(key="a"))
        assert ten.get(gone.id) is None
        assert 0 == ten.prune(before=7)

    def test_records_are_pruned_by_time(self, ten: EventLog) -> None:
        """
        What comes before the first record of a time goes, also where the clock was set back.
        """
        assert 2 == ten.prune(before=minutes(2))
        assert [3, 4, 5, 6, 7, 8, 9, 10] == offsets(ten.read())

    def test_the_newest_record_stays(self, ten: EventLog) -> None:
        """
        However much is to go, the newest record stays, and offsets go on after it.
        """
        assert 9 == ten.prune(before=10_000)
        assert [10] == offsets(ten.read())
        assert [11] == ten.append([record()])

    def test_a_pruned_stream_keeps_its_version(self, log: EventLog) -> None:
        """
        Pruned records count on in the version of their stream.
        """
        found = log.append([record(key="a"), record(key="b"), record(key="a"), record()])
        log.prune(before=found[-1])
        assert (2, 1) == (log.stream_version("a"), log.stream_version("b"))
        log.append([record(key="a")], expected_version=2)
        log.append([record(key="b"), record(key="b")])
        assert (3, 3) == (log.stream_version("a"), log.stream_version("b"))
        log.prune(before=log.append([record()])[0])
        assert (3, 3) == (log.stream_version("a"), log.stream_version("b"))
