"""Money is parsed exactly or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyxnet.amounts import MAX_BASE_UNITS, AmountError, format_cyx, parse


@pytest.mark.parametrize(
    ("written", "base_units"),
    [
        ("2.5", 2_500_000_000),
        ("1", 1_000_000_000),
        (3, 3_000_000_000),
        ("0.000000001", 1),
        ("12.345678901", 12_345_678_901),
        ("007.50", 7_500_000_000),
        ("9223372036.854775807", MAX_BASE_UNITS),
    ],
)
def test_a_plain_decimal_becomes_base_units(written: object, base_units: int) -> None:
    assert parse(written) == base_units


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("0", "more than 0"),
        (0, "more than 0"),
        ("0.000000000", "more than 0"),
        ("-1", "more than 0 CYX, got -1"),
        (-2, "more than 0 CYX, got -2"),
        ("1.0000000001", "at most 9 decimals, got 10"),
        ("9223372036.854775808", "at most 9223372036.854775807"),
        (10**100, "plain decimal"),
        (10**4000, "plain decimal"),
        ("1e3", "plain decimal"),
        ("NaN", "plain decimal"),
        ("inf", "plain decimal"),
        ("", "plain decimal"),
        (" 1", "plain decimal"),
        ("1\n", "plain decimal"),
        ("+1", "plain decimal"),
        ("1_000", "plain decimal"),
        ("1,5", "plain decimal"),
        (".5", "plain decimal"),
        ("5.", "plain decimal"),
        ("٣", "plain decimal"),
        ("0x10", "plain decimal"),
        (2.5, 'amount: write it in quotes, "2.5", so that'),
        (float("nan"), "write it in quotes"),
        (True, "got bool"),
        (None, "got NoneType"),
        (["1"], "got list"),
    ],
)
def test_anything_else_is_refused_with_its_reason(written: object, complaint: str) -> None:
    with pytest.raises(AmountError, match=complaint) as caught:
        parse(written)
    assert "\n" not in str(caught.value)


def test_the_error_names_the_value_it_is_about() -> None:
    with pytest.raises(AmountError, match=r"--faucet: expected"):
        parse("abc", "--faucet")


@pytest.mark.parametrize(
    ("base_units", "shown"),
    [(2_500_000_000, "2.5"), (0, "0"), (1, "0.000000001"), (-250_000_000, "-0.25"), (10**18, "1000000000")],
)
def test_base_units_are_shown_as_the_shortest_decimal(base_units: int, shown: str) -> None:
    assert format_cyx(base_units) == shown


@given(st.integers(1, MAX_BASE_UNITS))
def test_what_is_shown_parses_back_to_the_same_amount(base_units: int) -> None:
    assert parse(format_cyx(base_units)) == base_units


@given(st.text(max_size=30))
def test_any_text_is_an_amount_or_an_amount_error(text: str) -> None:
    try:
        assert 0 < parse(text) <= MAX_BASE_UNITS
    except AmountError:
        pass
