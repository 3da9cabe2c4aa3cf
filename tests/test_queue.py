"""
Queue, desk, staff and backlog, step by step: order, room, the end, and every race.

Nothing here runs at the same time: a race is its steps, taken in the order in question.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventbus._job import NOBODY, Depth, Job, Latch, Worker, into_hand
from eventbus._process import _after_fork
from queue_by_hand import Hands, is_awake

# -- order


def test_first_in_first_out():
    """
    Jobs without a key are handed out in the order in which they were accepted.
    """
    hands = Hands()
    assert [True, True] == hands.offer(1, 2)
    assert [1, 2, None] == [hands.turn(), hands.turn(), hands.turn()]


def test_a_key_waits_for_its_first():
    """
    A job is held back while one of its key is in hand; those of other keys are not.
    """
    hands = Hands(workers=2)
    hands.offer(1, 2, key="a")
    hands.offer(3, key="b")
    one, other = hands.workers_started
    assert [1, 3] == [hands.turn(one), hands.turn(other)]
    assert [None, 2] == [hands.turn(other), hands.turn(one)]
    assert [None] == [hands.turn(one)]
    assert {} == hands.queue._backlog.keys


def test_a_key_waits_for_the_next_attempt():
    """
    While a job of a key is between two attempts, its successor is held and others go on.
    """
    hands = Hands()
    hands.offer(1, 2, key="a")
    hands.offer(3, key="b")
    assert 1 == hands.turn()
    hands.queue.postpone(hands.worker, hands.later(5.0))
    assert [3, None] == [hands.turn(), hands.turn()]
    hands.clock.advance(5.0)
    assert [1, 2, None] == [hands.turn(), hands.turn(), hands.turn()]


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=12),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["done", "later", "died"]))),
)
def test_a_key_never_overtakes_itself(keys: list[str], steps: list[tuple[int, str]]):
    """
    Whoever is given what, whenever: each key's jobs are done in order, each of them once.
    """
    hands = Hands(capacity=20, workers=3)
    staff = [hands.queue.lend() for _ in range(3)]
    for number, key in enumerate(keys):
        hands.offer((key, number), key=key)
    done: list[Any] = []

    def take(worker: Worker) -> None:
        if worker.is_dismissed:
            hands.queue.staff.hire(worker)
        hands.turn(worker)
        in_hand = [each.job.key for each in staff if each.job is not None]
        assert len(set(in_hand)) == len(in_hand)

    for which, step in steps:
        worker = staff[which]
        if worker.job is not None and step == "later":
            hands.queue.postpone(worker, hands.later(1.0))
        elif worker.job is not None and step == "died" and worker.job.returns < 2:
            hands.queue.bereave(worker)
        elif worker.job is not None:
            done.append(worker.job.event)
        take(worker)
    for _ in range(2 * len(keys) + 3):
        for worker in staff:
            if worker.job is not None:
                done.append(worker.job.event)
            take(worker)
        hands.clock.advance(1.0)
    assert sorted(done) == sorted((key, number) for number, key in enumerate(keys))
    assert all(
        [each for each in done if each[0] == key] == sorted(each for each in done if each[0] == key)
        for key in "abc"
    )
    assert not hands.queue.is_busy


# -- room


def test_what_waits_counts_and_what_is_in_hand_does_not():
    """
    Ready, held and scheduled jobs count against the capacity; those in hand do not.
    """
    hands = Hands(capacity=3)
    hands.offer(1)
    hands.turn()
    hands.queue.postpone(hands.worker, hands.later(1.0))
    hands.offer(2, key="a")
    assert 2 == hands.turn()
    assert [True, True, False] == hands.offer(3, 4, 5, key="a")
    depth = hands.queue.depth()
    assert (2, 1, 1, 4) == (depth.waiting, depth.scheduled, depth.in_flight, depth.pending)


def test_the_lag_is_the_age_of_the_oldest():
    """
    The lag is how long the oldest job that waits has been waiting; 0 where none does.
    """
    hands = Hands()
    assert 0.0 == hands.queue.depth().lag
    hands.offer(1)
    hands.clock.advance(2.0)
    hands.offer(2)
    hands.clock.advance(1.0)
    assert 3.0 == hands.queue.depth().lag


# -- who works


def test_no_more_workers_than_allowed():
    """
    A worker is started for each job until there are as many as the mode allows.
    """
    hands = Hands(workers=2)
    hands.offer(1, 2, 3)
    assert 2 == len(hands.workers_started) == len(hands.queue.staff)
    assert not hands.queue.wants
    assert not hands.queue.hire(Worker())


def test_a_parked_worker_is_woken_before_another_starts():
    """
    A job wakes a worker that has nothing to do, if there is one.
    """
    hands = Hands(workers=2)
    hands.offer(1)
    assert [1, None] == [hands.turn(), hands.turn()]
    assert not is_awake(hands.worker)
    hands.offer(2)
    assert is_awake(hands.worker)


def test_a_task_with_nothing_to_do_ends():
    """
    A worker without a lock to be parked on is counted out when nothing is ready.
    """
    hands = Hands()
    worker = hands.queue.lend()
    assert None is hands.turn(worker)
    assert worker.is_dismissed
    assert 0 == len(hands.queue.staff)


# -- without the lock: each of two sees the other


def test_appended_before_the_worker_looks_again():
    """
    What is appended while a worker finds nothing is found by its second look.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    send_away = hands.queue.staff.send_away

    def publish_meanwhile(worker: Worker, *, for_good: bool) -> None:
        if not hands.queue.ready and worker.job is None:
            hands.append(2)
        send_away(worker, for_good=for_good)

    hands.queue.staff.send_away = publish_meanwhile  # type: ignore[method-assign]
    assert 2 == hands.turn()
    assert [] == hands.queue.staff.parked


def test_a_task_that_is_sent_away_comes_back_for_what_was_appended():
    """
    A task that was counted out is counted in again when its second look finds a job.
    """
    hands = Hands()
    worker = hands.queue.lend()
    send_away = hands.queue.staff.send_away

    def publish_meanwhile(worker: Worker, *, for_good: bool) -> None:
        hands.append(2)
        send_away(worker, for_good=for_good)

    hands.queue.staff.send_away = publish_meanwhile  # type: ignore[method-assign]
    assert 2 == hands.turn(worker)
    assert not worker.is_dismissed
    assert [worker] == list(hands.queue.staff)


def test_appended_after_the_worker_looked_again():
    """
    Who appends after a worker's last look sees that it wants to be woken.
    """
    hands = Hands()
    hands.offer(1)
    assert [1, None] == [hands.turn(), hands.turn()]
    assert hands.queue.wants
    assert hands.queue.attend(hands.append(2))
    assert is_awake(hands.worker)
    assert not hands.queue.wants


def test_a_worker_that_finds_its_job_gone():
    """
    A worker finds nothing where another one, without the lock, was quicker.
    """

    class Emptied(type(Hands().queue.ready)):  # type: ignore[misc]
        def popleft(self) -> Job:
            self.clear()
            raise IndexError

    hands = Hands()
    hands.offer(1)
    hands.queue.ready = hands.queue._backlog.ready = Emptied(hands.queue.ready)
    assert None is hands.turn()


def test_resumed_while_empty():
    """
    A queue that was paused and resumed while it was empty still wakes its worker.
    """
    hands = Hands()
    hands.offer(1)
    assert [1, None] == [hands.turn(), hands.turn()]
    hands.queue.pause()
    assert not hands.queue.wants
    hands.queue.resume()
    assert hands.queue.wants
    hands.offer(2)
    assert is_awake(hands.worker)


def test_taken_while_pausing():
    """
    What a worker has taken just when the queue was paused goes back to its head.
    """
    hands = Hands()
    hands.offer(1, 2, 3)
    hands.turn()
    hands.queue.pause()
    job = hands.take()
    assert hands.queue.is_eventful
    assert not hands.queue.confirm(hands.worker, job)
    assert None is hands.turn()
    hands.queue.resume()
    assert [2, 3] == [hands.turn(), hands.turn()]


def test_taken_while_closing():
    """
    What a worker has taken just before the queue was closed, unseen, is written off once.
    """
    hands = Hands()
    hands.offer(1, 2)
    hands.turn()
    hands.worker.job = None  # it is over
    job = hands.queue.ready.popleft()
    hands.queue.give_up()
    hands.worker.job = job
    assert not hands.queue.confirm(hands.worker, job)
    assert [(2, "undelivered")] == hands.notes.written_off
    assert 1 == hands.queue.depth().undelivered


def test_taken_and_seen_while_closing():
    """
    What was given up between being taken and being confirmed is written off once.
    """
    hands = Hands()
    hands.offer(1, 2)
    hands.turn()
    job = hands.take()
    hands.queue.give_up()
    assert not hands.queue.confirm(hands.worker, job)
    assert [(2, "undelivered in hand")] == hands.notes.written_off
    assert 1 == hands.queue.depth().undelivered


def test_taken_with_a_key():
    """
    A job with a key that was taken without the lock keeps its successor waiting.
    """
    hands = Hands(workers=2)
    hands.offer(0)
    hands.turn()
    hands.offer(1, 2, key="a")
    one, other = hands.workers_started
    assert hands.queue.confirm(one, hands.take(one))
    assert [None, 2] == [hands.turn(other), hands.turn(one)]


def test_taken_while_a_publisher_waits():
    """
    Who takes a job without the lock, while a publisher waits for room, lets it come forward.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1, 2)
    hands.turn()
    hands.queue._blocked.append(lambda: told.append("room"))
    hands.queue._flag()
    assert hands.queue.is_eventful
    assert hands.queue.confirm(hands.worker, hands.take())
    assert ["room"] == told


def test_appended_after_closing():
    """
    What is appended to a queue that was closed meanwhile is taken out and refused.
    """
    hands = Hands()
    hands.queue.give_up()
    other, late = hands.append(1), hands.append(2)
    assert not hands.queue.attend(late)
    assert [other] == list(hands.queue.ready)
    assert not hands.queue.attend(other)


def test_appended_and_given_up():
    """
    What is appended before a queue is closed, and then found by it, is not refused as well.
    """
    hands = Hands()
    job = hands.append(1)
    hands.queue.give_up()
    assert hands.queue.attend(job)
    assert [(1, "undelivered")] == hands.notes.written_off


def test_events_are_not_compared():
    """
    Taking one job out of many compares no events: that is the user's code.
    """

    class Touchy:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    hands = Hands()
    hands.queue.give_up()
    hands.append(Touchy())
    assert not hands.queue.attend(hands.append(Touchy()))


# -- what is given up


def test_nothing_is_handed_out_after_closing():
    """
    A worker that comes back after the queue was closed is dismissed.
    """
    hands = Hands()
    hands.offer(1, 2)
    assert 1 == hands.turn()
    in_hand = hands.queue.give_up()
    assert [1] == [job.event for job in in_hand.values()]
    assert [(2, "undelivered"), (1, "undelivered in hand")] == hands.notes.written_off
    assert None is hands.turn()
    assert hands.worker.is_dismissed
    assert [False] == hands.offer(3)
    assert not hands.queue.is_busy


def test_what_waits_for_its_key_or_its_time_is_given_up():
    """
    Closing writes off what is held and what is scheduled, too, each once.
    """
    hands = Hands()
    hands.offer(1, 2, key="a")
    hands.turn()
    hands.queue.postpone(hands.worker, hands.later(1.0))
    hands.queue.give_up()
    hands.queue.give_up()
    hands.clock.advance(1.0)
    assert [(2, "undelivered"), (1, "undelivered")] == hands.notes.written_off
    assert 2 == hands.queue.depth().undelivered


def test_closing_wakes_who_is_parked():
    """
    A parked worker is woken by the end of the queue, and dismissed.
    """
    hands = Hands()
    hands.offer(1)
    assert [1, None] == [hands.turn(), hands.turn()]
    hands.queue.give_up()
    assert is_awake(hands.worker)
    assert None is hands.turn()
    assert hands.worker.is_dismissed


def test_what_is_being_written_down_is_not_given_up():
    """
    A job whose outcome is being recorded is left to its worker.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    assert hands.queue.seize(hands.worker)
    assert {} == hands.queue.give_up()
    assert [] == hands.notes.written_off


def test_what_was_given_up_is_not_written_down():
    """
    The outcome of a job that was given up is its worker's no more.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.give_up()
    assert not hands.queue.seize(hands.worker)
    hands.queue.postpone(hands.worker, hands.later(0.0))
    assert [(1, "undelivered in hand")] == hands.notes.written_off


def test_a_job_that_changes_after_it_was_given_up_stays_given_up():
    """
    Its worker, who had begun to look at its key, writes nothing down either.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    job = hands.worker.job
    assert job is not None
    hands.queue.give_up()
    hands.queue.amend(hands.worker, job._replace(since=1.0))
    assert not hands.queue.seize(hands.worker)
    assert [(1, "undelivered in hand")] == hands.notes.written_off


def test_a_recorded_job_does_not_cover_the_next():
    """
    Of a worker that has recorded one job and taken another, the other is given up.
    """
    hands = Hands()
    hands.offer(1, 2)
    hands.turn()
    hands.queue.seize(hands.worker)
    hands.take()
    hands.queue.give_up()
    assert [(2, "undelivered in hand")] == hands.notes.written_off


def test_postponed_after_closing():
    """
    A job whose next attempt would come after the end of its queue is written off.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.seize(hands.worker)
    hands.queue.give_up()
    hands.queue.postpone(hands.worker, hands.later(1.0))
    assert [(1, "undelivered")] == hands.notes.written_off
    assert 1 == hands.queue.depth().undelivered


# -- what is due later


def test_due_at_once():
    """
    A job postponed by no time at all is ready at once, behind the others.
    """
    hands = Hands()
    hands.offer(1, 2)
    hands.turn()
    hands.queue.postpone(hands.worker, hands.later(0.0))
    assert [2, 1] == [hands.turn(), hands.turn()]


def test_due_wakes_a_worker():
    """
    What has become due wakes a worker that has nothing to do.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.postpone(hands.worker, hands.later(1.0))
    assert None is hands.turn()
    hands.clock.advance(1.0)
    assert is_awake(hands.worker)


def test_woken_before_its_time():
    """
    A job that waits for a key is due when its store calls back, and only once.
    """
    hands, calls = Hands(), list[Any]()
    hands.offer(1)
    hands.turn()

    def wake(call: Any) -> bool:
        calls.append(call)
        return True

    hands.queue.postpone(hands.worker, hands.later(60.0, wake))
    assert None is hands.turn()
    calls[0]()
    assert 1 == hands.turn()
    assert None is hands.turn()
    hands.clock.advance(60.0)
    assert None is hands.turn()


@pytest.mark.parametrize(("answer", "seconds"), [(False, 0.0), (None, 0.02)])
def test_a_store_that_does_not_call_back_is_asked(answer: bool | None, seconds: float):
    """
    A store that will never call back is asked now and then; at once, if the key is free.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.postpone(hands.worker, hands.later(60.0, lambda _: answer))
    hands.clock.advance(seconds)
    assert 1 == hands.turn()


def test_a_store_that_fails_is_asked(caplog: pytest.LogCaptureFixture):
    """
    A store that raises when it is to call back is logged, and asked now and then.
    """

    def wake(call: Any) -> bool:
        raise ConnectionError("no store")

    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.postpone(hands.worker, hands.later(60.0, wake))
    hands.clock.advance(0.02)
    assert 1 == hands.turn()
    assert ["the store of keys of queue cannot call back; it is asked"] == caplog.messages


# -- a worker that has died


def test_what_a_dead_worker_had_goes_to_another():
    """
    What a worker had in hand when it died is handed out next, in its key's order.
    """
    hands = Hands()
    hands.offer(1, 2, key="a")
    hands.turn()
    hands.queue.bereave(hands.worker)
    _, other = hands.workers_started
    assert [1, 2] == [hands.turn(other), hands.turn(other)]


def test_a_dead_worker_lets_its_key_go():
    """
    A worker that dies when its job is done does not keep the next one of the key waiting.
    """
    hands = Hands()
    hands.offer(1, 2, key="a")
    hands.turn()
    hands.worker.job = None
    hands.queue.bereave(hands.worker)
    assert 2 == hands.turn(hands.workers_started[1])


def test_a_job_that_costs_too_many_lives():
    """
    A job that three workers have died with is given up, and its successor comes forward.
    """
    hands = Hands()
    hands.offer(1, 2, key="a")
    for life in range(3):
        assert 1 == hands.turn(hands.workers_started[life])
        hands.queue.bereave(hands.workers_started[life])
    assert [(1, "lost by 3")] == hands.notes.written_off
    assert 0 == hands.queue.depth().undelivered
    assert 2 == hands.turn(hands.workers_started[3])


def test_a_worker_that_dies_after_closing():
    """
    What a worker had in hand when it died after the end, and was recording, is written off.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.seize(hands.worker)
    hands.queue.give_up()
    hands.queue.bereave(hands.worker)
    hands.queue.bereave(hands.worker)
    assert [(1, "undelivered")] == hands.notes.written_off


def test_who_waits_for_the_end_learns_of_a_death():
    """
    A worker that dies with nothing in hand leaves nobody waiting.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1)
    hands.turn()
    hands.worker.job = None
    hands.queue.when_idle(lambda: told.append("idle"))
    hands.queue.bereave(hands.worker, revives=False)
    assert ["idle"] == told


def test_lost_workers_are_replaced():
    """
    Rousing a queue finds out who will never go on, and starts others.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.worker.is_lost = lambda: True
    hands.queue.rouse()
    assert [1] == [hands.turn(hands.workers_started[1])]


def test_revived_a_little_later():
    """
    A worker whose task was cancelled is replaced a moment later; not after the end.
    """
    hands = Hands()
    hands.offer(1)
    hands.turn()
    hands.queue.bereave(hands.worker, revives=False)
    hands.queue.revive_soon()
    assert 1 == len(hands.workers_started)
    hands.clock.advance(1.0)
    assert 2 == len(hands.workers_started)
    hands.queue.give_up()
    hands.queue.revive_soon()
    assert None is hands.clock.next_alarm


# -- the pace


def test_at_most_so_many_calls():
    """
    With a rate, jobs are handed out evenly spaced, on the bus's clock.
    """
    hands = Hands(interval=0.5)
    hands.offer(1, 2)
    assert [1, None] == [hands.turn(), hands.turn()]
    hands.clock.advance(0.4)
    assert None is hands.turn()
    hands.clock.advance(0.1)
    assert 2 == hands.turn()


def test_the_pace_does_not_wait_for_a_slow_handler():
    """
    While one worker is at a job, another is woken when the next one may be handed out.
    """
    hands = Hands(interval=0.5, workers=2)
    hands.offer(1, 2, 3)
    one, other = hands.workers_started
    assert [1, None] == [hands.turn(one), hands.turn(other)]
    hands.clock.advance(0.5)
    assert is_awake(other)
    assert [2, None] == [hands.turn(other), hands.turn(other)]
    hands.clock.advance(0.5)
    assert is_awake(other)
    assert 3 == hands.turn(other)


# -- pausing, waiting, ending


def test_paused_and_resumed():
    """
    A paused queue takes in and hands out nothing; resumed, it wakes its workers.
    """
    hands = Hands()
    hands.offer(1)
    assert [1, None] == [hands.turn(), hands.turn()]
    hands.queue.pause()
    hands.offer(2)
    assert not is_awake(hands.worker)
    assert None is hands.turn(hands.queue.lend())
    hands.queue.resume()
    assert is_awake(hands.worker)
    assert 2 == hands.turn()


def test_told_when_all_is_over():
    """
    Who waits for the end is told once, by whoever finishes the last job, or at once.
    """
    hands, told = Hands(), list[str]()
    hands.queue.when_idle(lambda: told.append("at once"))
    hands.offer(1)
    hands.turn()
    hands.queue.when_idle(lambda: told.append("at the end"))
    assert ["at once"] == told
    hands.turn()
    hands.turn()
    assert ["at once", "at the end"] == told


def test_told_no_more():
    """
    Who does not wait any more is not told.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1)

    def tell() -> None:
        told.append("idle")

    hands.queue.when_idle(tell)
    hands.queue.forget(tell)
    hands.turn()
    hands.turn()
    assert [] == told


def test_told_when_it_is_paused():
    """
    Who waits only for what is handed out is told when the queue is paused; others wait on.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1)
    hands.queue.when_idle(lambda: told.append("idle"))
    hands.queue.when_idle(lambda: told.append("quiet"), or_paused=True)
    hands.queue.pause()
    hands.queue.when_idle(lambda: told.append("paused"), or_paused=True)
    assert ["quiet", "paused"] == told


def test_retired():
    """
    A retired queue refuses what comes, hands out what it has, and then is over.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1)
    hands.queue.retire(lambda: told.append("over"))
    assert [False] == hands.offer(2)
    assert not hands.queue.attend(hands.append(3))
    assert 1 == hands.turn()
    assert [] == told
    assert None is hands.turn()
    assert ["over"] == told
    assert is_awake(hands.worker)
    assert None is hands.turn()
    assert hands.worker.is_dismissed


def test_retired_while_publishers_wait():
    """
    Who waits for room in a queue that is retired is told: there will be none.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1)
    hands.queue._blocked.append(lambda: told.append("no room"))
    hands.queue.retire(lambda: None)
    assert ["no room"] == told


def test_taken_back():
    """
    What nobody has in hand can be taken back, and who waits for the end is told.
    """
    hands, told = Hands(), list[str]()
    hands.offer(1, 2)
    hands.queue.when_idle(lambda: told.append("idle"))
    assert [1, 2] == [job.event for job in hands.queue.take_back()]
    assert ["idle"] == told


def test_lent_and_released():
    """
    A lent worker that is released has finished its job, and takes no other.
    """
    hands, told = Hands(limit=0), list[str]()
    hands.offer(1)
    worker = hands.queue.lend()
    assert 1 == hands.turn(worker)
    hands.queue.when_idle(lambda: told.append("idle"))
    hands.queue.release(worker)
    assert ["idle"] == told
    assert worker.is_dismissed


def test_as_many_at_once_as_the_mode_says():
    """
    Who lends workers learns how many may be at work at once: none while it is paused.
    """
    hands = Hands(limit=0, workers=1)
    assert hands.queue.has_worker_free
    hands.queue.pause()
    assert not hands.queue.has_worker_free
    hands.queue.resume()
    hands.queue.lend()
    assert not hands.queue.has_worker_free


def test_who_handles():
    """
    A queue knows which thread has one of its jobs in hand, and on which loop it works.
    """
    hands, loop = Hands(), object()
    worker = hands.queue.lend(threading.current_thread())
    assert not hands.queue.is_handled_by(threading.current_thread())
    hands.offer(1)
    hands.turn(worker)
    assert hands.queue.is_handled_by(threading.current_thread())
    assert not hands.queue.works_on(loop)
    worker.loop = loop
    assert hands.queue.works_on(loop)


def test_a_forked_process_begins_with_nothing():
    """
    In a forked process the jobs and the workers are the parent's, and it has a new lock.
    """
    hands = Hands()
    hands.offer(1)
    with hands.queue._lock:
        _after_fork()
    assert Depth() == hands.queue.depth()
    hands.offer(2)
    assert [2] == [hands.turn(hands.workers_started[1])]


def test_a_closed_queue_stays_closed_in_a_forked_process():
    """
    What was closed before a fork takes nothing in the child either.
    """
    hands = Hands()
    hands.queue.give_up()
    _after_fork()
    assert [False] == hands.offer(1)


def test_who_is_parked_ends_with_the_queue():
    """
    A queue that is dropped wakes who is parked at it.
    """
    hands = Hands()
    hands.offer(1)
    assert [1, None] == [hands.turn(), hands.turn()]
    worker = hands.worker
    hands.queue = Hands().queue
    assert is_awake(worker)


# -- values


def test_a_latch_tells_all():
    """
    Who waits for a latch is told when it comes; who asks later, at once.
    """
    latch, told = Latch(), list[int]()
    latch.tell(lambda: told.append(1))()
    assert not latch.is_over
    latch.has_come()
    latch.tell(lambda: told.append(2))
    assert latch.is_over
    assert [1, 2] == told


def test_who_joins_himself():
    """
    Joining a task, or the thread one is in, is over at once.
    """
    Worker().join()
    Worker(park=threading.Lock(), who=threading.current_thread()).join()


def test_nobody():
    """
    A queue that is not folded yet has a keeper that does nothing.
    """
    hands = Hands()
    job = hands.job(1)
    NOBODY.refuse(job.receipt, ValueError())
    NOBODY.write_off(job, "dropped")
    NOBODY.lose(job)
    assert None is NOBODY.perform(job, Worker())
    with pytest.raises(StopIteration):
        NOBODY.aperform(job, Worker()).send(None)  # type: ignore[attr-defined]


def test_a_job_comes_into_a_workers_hand_in_one_step():
    """
    What is taken from the queue is in the worker's hand at once, in order; then there is none.
    """
    hands, worker = Hands(), Worker()
    hands.queue.limit = 0
    first, second = hands.append(1), hands.append(2)
    take = into_hand(worker, hands.queue.ready)
    taken = list[Job | None]()
    for _ in range(2):
        take()
        taken.append(worker.job)
    assert [first, second] == taken
    with pytest.raises(IndexError):
        take()
    third = hands.append(3)
    take()
    assert third is worker.job
