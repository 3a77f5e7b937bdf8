"""First in, first out, never more than the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from livemove.fleet.admission import AdmissionQueue


def test_slots_then_places_in_order():
    queue = AdmissionQueue(2)
    assert [queue.request(name) for name in "abcd"] == [0, 0, 1, 2]
    assert queue.request("d") == 2
    queue.release("a")
    assert queue.request("d") == 2, "d must not overtake c, which was first"
    assert queue.request("c") == 0
    assert queue.active == ("b", "c")


def test_a_raised_limit_admits_those_who_ask_again():
    queue = AdmissionQueue(1)
    queue.request("a")
    assert queue.request("b") == 1
    queue.set_limit(2)
    assert queue.request("b") == 0


def test_one_who_left_the_queue_makes_room():
    queue = AdmissionQueue(1)
    assert [queue.request(name) for name in "abc"] == [0, 1, 2]
    queue.release("b")
    queue.release("b")
    assert queue.request("c") == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60), st.integers(1, 4))
def test_never_more_than_the_limit_and_never_out_of_order(steps: list[tuple[str, bool]], limit: int):
    queue = AdmissionQueue(limit)
    for name, release in steps:
        if release:
            queue.release(name)
        else:
            waiting, active = queue.waiting, queue.active
            admitted = queue.request(name) == 0 and name not in waiting and name not in active
            if admitted and waiting:
                assert len(queue.active) + len(waiting) <= limit
        assert len(queue.active) <= limit
        assert not set(queue.active) & set(queue.waiting)
