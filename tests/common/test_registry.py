"""Classes are known by their kind, and each kind is that of one class."""

from dataclasses import dataclass

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.registry import SCHEMAS, register
from stepwise_pl.methods import Stepwise


def test_a_class_without_a_kind_of_its_own_replaces_nothing() -> None:
    @dataclass
    class Bad(Stepwise):
        pass

    with pytest.raises(
        UserError, match=r'Bad: is registered as a method without a kind; give it `kind: str = "<name>"`'
    ):
        register("method")(Bad)
    assert SCHEMAS["method", "stepwise"] is Stepwise


def test_a_kind_that_another_class_has_is_refused() -> None:
    @dataclass
    class Twin(Stepwise):
        kind: str = "stepwise"

    with pytest.raises(
        UserError, match=r"Twin: kind stepwise is that of stepwise_pl.methods.stepwise.Stepwise already"
    ):
        register("method")(Twin)
    assert SCHEMAS["method", "stepwise"] is Stepwise


def test_a_module_that_is_loaded_again_brings_its_class_once_more() -> None:
    assert register("method")(Stepwise) is Stepwise
