from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from core.schemas import ItemPatch, ItemView, NewItem


def parse(**fields: Any) -> NewItem:
    return NewItem.model_validate_json(TypeAdapter(dict[str, Any]).dump_json({"name": "n", **fields}))


@pytest.mark.parametrize(
    ("given", "cents"),
    [
        ("0", 0),
        ("0.00", 0),
        ("12.5", 1250),
        ("12.50", 1250),
        (12.5, 1250),
        (12, 1200),
        (0.1, 10),
        (1.0, 100),
        ("9999999999.99", 999999999999),
        (9999999999.99, 999999999999),
        (9999999999, 999999999900),
    ],
)
def test_price_is_kept_as_whole_cents(given: Any, cents: int) -> None:
    assert parse(price=given).price_cents == cents


@pytest.mark.parametrize(
    "given",
    ["-1", -1, "1.234", 1.234, "1e3", 1e22, "1_000", "٣", "", " 1", "10000000000", 10_000_000_000, True, None, [], {}],
)
def test_what_is_no_price_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(price=given)
    assert caught.value.errors()[0]["loc"] == ("price",)


@pytest.mark.parametrize(
    ("number", "whole"),
    [
        *(("1679.0", 1679), ("1e3", 1000), ("50e-1", 5), ("-0.0", 0), ("-0", 0)),
        *(("9007199254740991.0", 2**53 - 1), ("9007199254740991", 2**53 - 1)),
    ],
)
def test_whole_number_may_be_written_with_a_fraction_of_zero(number: str, whole: int) -> None:
    assert NewItem.model_validate_json(f'{{"name": "n", "quantity": {number}}}').quantity == whole
    assert ItemPatch.model_validate_json(f'{{"quantity": {number}}}').quantity == whole


@pytest.mark.parametrize("number", ["1.5", "5e-1", "-1.0", "9007199254740992.0", "1e308", '"1"', "true"])
def test_other_numbers_are_no_quantity(number: str) -> None:
    with pytest.raises(ValidationError):
        NewItem.model_validate_json(f'{{"name": "n", "quantity": {number}}}')


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 4000])
def test_numbers_beyond_json_are_refused(number: str) -> None:
    for field in ("price", "quantity"):
        with pytest.raises(ValidationError):
            NewItem.model_validate_json(f'{{"name": "n", "{field}": {number}}}')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 201),
        ("name", "a\x00b"),
        ("name", 1),
        ("name", None),
        ("description", "x" * 2001),
        ("description", "\x00"),
        ("quantity", -1),
        ("quantity", 2**53),
        ("quantity", 1.5),
        ("quantity", "1"),
        ("quantity", True),
        ("colour", "red"),
        ("price_cents", 1),
        ("id", 1),
    ],
)
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{field: value})
    assert caught.value.errors()[0]["loc"] == (field,)


def test_a_patch_holds_only_what_was_sent() -> None:
    patch = ItemPatch.model_validate_json('{"description": null, "price": "2"}')
    assert patch.model_dump(exclude_unset=True) == {"description": None, "price_cents": 200}


@pytest.mark.parametrize(
    ("cents", "price"), [(0, "0.00"), (5, "0.05"), (1250, "12.50"), (10**12 - 1, "9999999999.99"), (-5, "-0.05")]
)
def test_price_goes_out_with_two_places(cents: int, price: str) -> None:
    assert ItemView.from_row(1, "n", None, cents, 0, "", "", 1).price == price
