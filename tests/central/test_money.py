import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyxcentral import money
from tests.central import facts as f


def test_ninety_and_ten_with_the_fee_rounded_down():
    assert money.divide(12_345_678_901, [12_345_678_901], 1000) == money.Shares(11_111_111_011, 1_234_567_890, 0)


@given(st.integers(1, 2**63 - 1), st.floats(0, 1), st.integers(0, 10_000))
def test_the_parts_always_make_the_whole(amount, share, fee_basis_points):
    pay = min(amount, int(amount * share))
    shares = money.divide(amount, [pay], fee_basis_points)
    parts = (shares.node_base_units, shares.platform_base_units, shares.client_base_units)
    assert sum(parts) == amount and min(parts) >= 0


@pytest.mark.parametrize("pay", [-1, 11])
def test_more_than_the_escrow_or_less_than_nothing_is_refused(pay):
    with pytest.raises(ValueError, match=r"\[0, 10\]"):
        money.divide(10, [pay], 1000)


def test_every_movement_sums_to_zero():
    movements = [
        money.deposit(f.terms()),
        money.settlement(f.terms(), [f.payee()], f.settled()),
        money.settlement(f.terms(), [], f.settled(0, 0, f.AMOUNT)),
    ]
    for entries in movements:
        assert sum(entry.amount_base_units for entry in entries) == 0
