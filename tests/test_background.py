import threading
import time
from contextlib import closing

import pytest

from rs_biformer.background import WriteBehind, read_ahead, side_by_side


def test_items_arrive_in_order():
    assert list(read_ahead(iter(range(20)), 3)) == list(range(20))
    assert list(read_ahead(iter(()), 3)) == []


def test_no_more_items_are_made_than_the_depth_allows():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    ahead = read_ahead(items(), 2)
    next(ahead)
    time.sleep(0.05)
    assert len(made) <= 3  # one in use, two waiting
    ahead.close()


def test_an_error_of_the_reader_is_raised_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("block 7 is damaged")

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="block 7"):
        next(ahead)


def test_closing_early_ends_the_thread():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), closing(read_ahead(iter(range(10**9)), 2)) as ahead:
        next(ahead)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_calls_are_made_in_order_and_all_of_them():
    written = []
    with WriteBehind(2) as writer:
        for number in range(20):
            writer.submit(written.append, number)
    assert written == list(range(20))


def test_an_error_of_the_last_call_is_raised_at_the_end():
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), WriteBehind(2) as writer:
        writer.submit(fail)


def test_an_error_of_a_call_reaches_a_caller_that_goes_on_submitting():
    def fail() -> None:
        raise OSError("no space left")

    calls = 0
    with pytest.raises(OSError, match="no space"), WriteBehind(1) as writer:
        for _ in range(10):
            writer.submit(fail)
            calls += 1
    assert calls < 10


def test_an_error_in_the_block_drops_what_waits_and_is_not_hidden():
    written, gate = [], threading.Event()
    with pytest.raises(ValueError, match="model"), WriteBehind(3) as writer:
        writer.submit(gate.wait, 5)
        writer.submit(written.append, 1)
        writer.submit(written.append, 2)
        threading.Timer(0.05, gate.set).start()
        raise ValueError("model failed")
    assert written == []


def test_items_of_several_generators_all_arrive_each_in_its_order():
    def items(name: str):
        for number in range(20):
            yield name, number

    found = list(side_by_side([items(name) for name in "abc"]))
    for name in "abc":
        assert [number for of, number in found if of == name] == list(range(20))
    assert len(found) == 60
    assert list(side_by_side([])) == []


def test_generators_side_by_side_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)

    def meet(number: int):
        meeting.wait()
        yield number

    assert sorted(side_by_side([meet(number) for number in range(3)])) == [0, 1, 2]


def test_a_generator_makes_no_second_item_before_its_first_is_taken():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    beside = side_by_side([items()])
    next(beside)
    time.sleep(0.05)
    assert len(made) <= 2
    beside.close()


@pytest.mark.parametrize("where", ["in a generator", "in the caller"])
def test_an_error_beside_ends_and_closes_all_generators(where: str):
    closed = []

    def items(fails: bool):
        try:
            for number in range(10**9):
                if fails and number == 5:
                    raise OSError("no space left")
                yield number
        finally:
            closed.append(fails)

    before = threading.active_count()
    with (
        pytest.raises(OSError, match="no space"),
        closing(side_by_side([items(where[3] == "a"), items(False)])) as all_,
    ):
        for number in all_:
            if number == 7:
                raise OSError("no space left")
    assert threading.active_count() == before
    assert len(closed) == 2
