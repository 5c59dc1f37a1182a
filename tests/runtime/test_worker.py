from __future__ import annotations

import os
import select
import threading
import time

import pytest

from corepipe.runtime import messages
from corepipe.runtime.arena import Arena, Layout
from corepipe.runtime.worker import _Inbox, _loop, _Outbox, _Usual

MS = 1_000_000


@pytest.fixture
def boxes():
    """A worker's inbox and outbox, with what feeds the one and what reads the other."""
    to_inbox, from_outbox = os.pipe(), os.pipe()
    inbox = _Inbox(to_inbox[0])

    def run(*frames):
        for frame in frames:
            messages.send(to_inbox[1], messages.RUN_HOLD, 0, 0, frame, frame)

    def told():
        if not select.select([from_outbox[0]], [], [], 0)[0]:
            return []
        return [(kind, frame) for kind, _, _, _, frame in messages.receive(from_outbox[0])]

    yield inbox, _Outbox(from_outbox[1], inbox), run, told, to_inbox[1]
    for fd in (*to_inbox, *from_outbox):
        os.close(fd)


def test_the_shortest_hop_is_run_first_and_of_those_that_take_as_long_the_oldest_frame():
    read, write = os.pipe()
    usual = _Usual({(0, 0): (1,), (0, 1): (2,), (1, 0): (2,), (2, 0): (3,)})
    inbox = _Inbox(read, usual)

    def order(*items):
        for hop, route, frame in items:
            messages.send(write, messages.RUN, hop, route, frame, frame)
        messages.send(write, messages.FENCE, 0, 0, 0, 7)
        return [inbox.next_hop()[0] for _ in range(len(items) + 1)][:-1]

    waiting = [(0, 0, 4), (1, 0, 5), (0, 1, 3), (0, 2, 6), (0, 0, 2)]
    try:
        assert order(*waiting) == [2, 3, 4, 5, 6]  # nothing is known
        usual.note(0, 0, 9 * MS)
        usual.note(1, 0, 2 * MS)
        usual.note(0, 2, 5 * MS)
        assert order(*waiting) == [3, 5, 6, 2, 4]
        for _ in range(200):
            usual.note(0, 2, MS)
        assert order(*waiting) == [6, 3, 5, 2, 4]
    finally:
        os.close(read)
        os.close(write)


def test_a_frame_that_many_later_ones_are_ahead_of_comes_first():
    read, write = os.pipe()
    usual = _Usual({(0, 0): (1,), (0, 1): (2,)})
    inbox = _Inbox(read, usual, most_passed=5)
    usual.note(0, 0, 9 * MS)
    usual.note(1, 0, MS)
    try:
        for hop, frame in ((0, 2), (1, 3), (1, 7)):
            messages.send(write, messages.RUN, hop, 0, frame, frame)
        assert inbox.next_hop()[0] == 3
        messages.send(write, messages.RUN, 1, 0, 8, 8)
        inbox.look()
        assert [inbox.next_hop()[0] for _ in range(3)] == [2, 7, 8]
    finally:
        os.close(read)
        os.close(write)


def test_word_of_a_result_is_held_back_only_while_more_than_one_frame_waits(boxes):
    inbox, outbox, run, told, _ = boxes
    run(1, 2, 3, 4)
    began = 0
    heard = []
    for _ in range(4):
        frame = inbox.next_hop()[0]
        outbox.hold(0, 0, frame, frame, began, began + MS)
        began += MS
        heard.append([frame for _, frame in told()])
    assert heard == [[], [], [1, 2, 3], [4]]


def test_word_of_a_result_is_held_back_no_longer_than_the_limit(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(10))
    hop = int(messages.HOLD_S * 1e9 / 2)
    heard = []
    for number in range(6):
        frame = inbox.next_hop()[0]
        outbox.hold(0, 0, frame, frame, number * hop, (number + 1) * hop)
        heard.append([frame for _, frame in told()])
    assert heard == [[], [], [0, 1, 2], [], [], [3, 4, 5]]


def test_word_that_is_held_back_goes_after_a_hop_of_another_route_where_nothing_is_to_be_awaited(boxes):
    inbox, outbox, run, told, _ = boxes
    run(1, 2, 3, 4)
    inbox.next_hop()
    outbox.hold(0, 0, 1, 1, 0, MS)
    inbox.next_hop()
    outbox.settle(MS, 2 * MS)
    assert told() == []
    inbox.next_hop()
    outbox.settle(2 * MS, 3 * MS)
    assert told() == [(messages.DONE, 1)]
    outbox.settle(3 * MS, 4 * MS)
    assert told() == []


def test_word_is_held_back_over_hops_of_other_routes_no_longer_than_the_limit(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(10))
    inbox.next_hop()
    outbox.hold(0, 0, 0, 0, 0, MS)
    outbox.settle(MS, 2 * MS + int(messages.HOLD_S * 1e9 / 2))
    assert told() == [(messages.DONE, 0)]


def test_word_does_not_wait_for_a_hop_that_is_known_to_be_long(boxes):
    inbox, outbox, run, told, _ = boxes
    inbox._usual = _Usual({(0, 0): (1,), (0, 1): (2,)})
    run(1, 2, 3, 4)
    inbox.next_hop()
    outbox.hold(0, 0, 1, 1, 0, MS)
    assert told() == []
    inbox._usual.note(0, 0, int(messages.HOLD_S * 1e9))
    inbox.next_hop()
    outbox.settle(MS, 2 * MS)
    assert told() == [(messages.DONE, 1)]


def test_word_of_no_more_than_so_many_results_is_held_back(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(2 * messages.MOST_HELD + 2))
    heard = []
    for number in range(2 * messages.MOST_HELD):
        frame = inbox.next_hop()[0]
        outbox.hold(0, 0, frame, frame, number, number + 1)
        heard.append(len(told()))
    assert heard == ([0] * (messages.MOST_HELD - 1) + [messages.MOST_HELD]) * 2


def test_a_long_hop_is_told_of_at_once(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(10))
    inbox.next_hop()
    outbox.hold(0, 0, 0, 0, 0, int(messages.HOLD_S * 1e9) + 1)
    assert told() == [(messages.DONE, 0)]


def test_failures_and_fences_take_what_is_held_along(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(10))
    inbox.next_hop()
    outbox.hold(0, 0, 0, 0, 0, MS)
    outbox.send(messages.FAILED, 0, 0, 1, 1)
    assert told() == [(messages.DONE, 0), (messages.FAILED, 1)]


def test_nothing_is_begun_or_held_back_once_the_order_to_end_has_come(boxes):
    inbox, outbox, run, told, fd = boxes
    run(1, 2, 3, 4)
    assert inbox.next_hop()[0] == 1
    assert inbox.waiting == 3
    messages.send(fd, messages.STOP)
    inbox.look()
    outbox.hold(0, 0, 1, 1, 0, MS)
    assert told() == [(messages.DONE, 1)]
    assert inbox.next_hop() == messages.STOP


@pytest.mark.parametrize("kind", [messages.RUN, messages.RUN_HOLD])
def test_all_that_was_asked_for_is_told_of_and_handed_on(kind):
    """Whole frames, of which word may wait or not, among frames of another route that go on to another worker."""
    inbox, results, other = os.pipe(), os.pipe(), os.pipe()
    arena = Arena.create(Layout.of([], 8))
    whole, part = (0, 0), (1, 0)
    asked = [whole, part, part, whole, whole, whole, part, whole]
    try:
        for frame, (route, hop) in enumerate(asked):
            messages.send(inbox[1], kind, hop, route, frame, frame)
        worker = threading.Thread(
            target=_loop, args=(0, inbox[0], results[1], {whole: ([], results[1]), part: ([], other[1])}, arena)
        )
        worker.start()
        told, handed = [], []
        while len(told) + len(handed) < len(asked):
            ready, _, _ = select.select([results[0], other[0]], [], [], 10)
            assert ready, f"told of {told}, handed on {handed}"
            for fd in ready:
                for got, hop, route, _, frame in messages.receive(fd):
                    assert (got, hop, route) == ((messages.DONE, 0, 0) if fd == results[0] else (kind, 1, 1))
                    (told if fd == results[0] else handed).append(frame)
        assert told == [frame for frame, step in enumerate(asked) if step == whole]
        assert handed == [frame for frame, step in enumerate(asked) if step == part]
        messages.send(inbox[1], messages.STOP)
        worker.join(10)
        assert not worker.is_alive()
    finally:
        arena.close()
        for fd in (*inbox, *results, *other):
            os.close(fd)


@pytest.fixture
def ends():
    """The pipes of a worker's inbox and of what it tells, and slots."""
    inbox, results = os.pipe(), os.pipe()
    arena = Arena.create(Layout.of([], 8))
    yield inbox, results, arena
    arena.close()
    for fd in (*inbox, *results):
        os.close(fd)


class Segment:
    """Takes so long, and does something each of the first times that it runs."""

    def __init__(self, *does, seconds=0.0):
        self._does, self._seconds, self.ran = list(does), seconds, []

    def run(self, slot):
        self.ran.append(slot)
        time.sleep(self._seconds)
        if self._does:
            self._does.pop(0)()


def test_a_worker_sees_what_comes_while_others_wait(ends):
    """A shorter hop than those that wait, and then the order to end."""
    inbox, results, arena = ends

    def come():
        messages.send(inbox[1], messages.RUN_HOLD, 0, 1, 7, 7)

    def end():
        messages.send(inbox[1], messages.STOP)

    short, long = Segment(lambda: None, end), Segment(come, seconds=0.02)
    for route, frame in ((1, 0), (0, 1), (0, 2), (0, 3), (0, 4)):
        messages.send(inbox[1], messages.RUN_HOLD, 0, route, frame, frame)
    _loop(0, inbox[0], results[1], {(1, 0): ([short], results[1]), (0, 0): ([long], results[1])}, arena)
    assert [frame for *_, frame in messages.receive(results[0])] == [0, 1, 7]


def test_a_worker_whose_hops_are_alike_ends_at_once(ends):
    inbox, results, arena = ends
    segment = Segment(lambda: messages.send(inbox[1], messages.STOP))
    for frame in range(5):
        messages.send(inbox[1], messages.RUN_HOLD, 0, 0, frame, frame)
    _loop(0, inbox[0], results[1], {(0, 0): ([segment], results[1])}, arena)
    assert segment.ran == [0]
    assert [frame for *_, frame in messages.receive(results[0])] == [0]


@pytest.mark.parametrize("most", [1, 3])
def test_a_worker_holds_word_of_no_more_results_than_there_are_slots_for(ends, most):
    inbox, results, arena = ends
    told = []

    class Reader(Segment):
        def run(self, slot):
            if select.select([results[0]], [], [], 0)[0]:
                told.append([frame for *_, frame in messages.receive(results[0])])

    for frame in range(8):
        messages.send(inbox[1], messages.RUN_HOLD, 0, 0, frame, frame)
    worker = threading.Thread(
        target=_loop, args=(0, inbox[0], results[1], {(0, 0): ([Reader()], results[1])}, arena, most)
    )
    worker.start()
    while sum(map(len, told)) < 6:
        assert worker.is_alive()
    messages.send(inbox[1], messages.STOP)
    worker.join(10)
    assert all(len(frames) == most for frames in told[: 6 // most])
