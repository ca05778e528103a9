"""Errors keep what they say on their way between processes."""

import pickle

import pytest

from tif1_pipeline import exceptions
from tif1_pipeline.exceptions import Tif1Error

ERRORS = [item for item in vars(exceptions).values() if isinstance(item, type) and issubclass(item, Tif1Error)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_pickles_with_message_and_details(kind):
    error = kind("no Monaco in 1990; seasons start with 2018", year=1990)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "no Monaco in 1990; seasons start with 2018"
    assert again.details == {"year": 1990}


def test_the_tree_in_the_docstring_is_the_tree():
    for kind in ERRORS:
        assert kind.__name__ in (exceptions.__doc__ or "")


def test_what_is_not_found_can_be_caught_as_one():
    for kind in (exceptions.EventNotFoundError, exceptions.SessionNotFoundError, exceptions.DriverNotFoundError):
        assert issubclass(kind, exceptions.DataNotFoundError)
