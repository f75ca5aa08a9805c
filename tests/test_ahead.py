"""What a second thread makes ahead comes in order, and its errors in their turn."""

import pytest

from stm.ahead import ahead


def test_what_is_made_ahead_comes_in_order_and_fails_in_its_turn() -> None:
    assert list(ahead(range(10), lambda n: n * n)) == [n * n for n in range(10)]
    assert list(ahead([], str)) == []
    made = ahead([1, 0, 2], lambda n: 1 / n)
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
