from __future__ import annotations

import os
import select

import pytest

from corepipe.runtime import messages
from corepipe.runtime.worker import _Inbox, _Outbox

MS = 1_000_000


@pytest.fixture
def boxes():
    """A worker's inbox and outbox, with what feeds the one and what reads the other."""
    to_inbox, from_outbox = os.pipe(), os.pipe()
    inbox = _Inbox(to_inbox[0])

    def run(*frames):
        for frame in frames:
            messages.send(to_inbox[1], messages.RUN, 0, 0, frame, frame)

    def told():
        if not select.select([from_outbox[0]], [], [], 0)[0]:
            return []
        return [(kind, frame) for kind, _, _, _, frame in messages.receive(from_outbox[0])]

    yield inbox, _Outbox(from_outbox[1], inbox), run, told, to_inbox[1]
    for fd in (*to_inbox, *from_outbox):
        os.close(fd)


def test_word_of_a_result_is_held_back_only_while_more_than_one_frame_waits(boxes):
    inbox, outbox, run, told, _ = boxes
    run(1, 2, 3, 4)
    began = 0
    heard = []
    for _ in range(4):
        frame = inbox.next_hop()[0]
        outbox.done(0, 0, frame, frame, began, began + MS)
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
        outbox.done(0, 0, frame, frame, number * hop, (number + 1) * hop)
        heard.append([frame for _, frame in told()])
    assert heard == [[], [], [0, 1, 2], [], [], [3, 4, 5]]


def test_a_long_hop_is_told_of_at_once(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(10))
    inbox.next_hop()
    outbox.done(0, 0, 0, 0, 0, int(messages.HOLD_S * 1e9) + 1)
    assert told() == [(messages.DONE, 0)]


def test_failures_and_fences_take_what_is_held_along(boxes):
    inbox, outbox, run, told, _ = boxes
    run(*range(10))
    inbox.next_hop()
    outbox.done(0, 0, 0, 0, 0, MS)
    outbox.send(messages.FAILED, 0, 0, 1, 1)
    assert told() == [(messages.DONE, 0), (messages.FAILED, 1)]


def test_nothing_is_begun_or_held_back_once_the_order_to_end_has_come(boxes):
    inbox, outbox, run, told, fd = boxes
    run(1, 2, 3, 4)
    assert inbox.next_hop()[0] == 1
    assert inbox.waiting() == 3
    messages.send(fd, messages.STOP)
    outbox.done(0, 0, 1, 1, 0, MS)
    assert told() == [(messages.DONE, 1)]
    assert inbox.next_hop() == messages.STOP
