"""Every catalog: members found, told apart, summed up in a sentence, and closed to unknown options."""

from __future__ import annotations

import importlib
import inspect
import keyword

import pytest
from pydantic import ValidationError

from edgekd.catalog import CATALOGS
from edgekd.recipe import DataSettings, LossSettings, ModelSettings, TeacherSettings
from edgekd.spec import Options

# how many members there were when this was written: a catalog never shrinks unseen
FEWEST = {"losses": 4, "methods": 2, "models": 6, "datasets": 5, "targets": 3, "devices": 1, "calibration": 3}
FEWEST["corrections"] = 5
MEMBERS = [(catalog, name) for catalog in CATALOGS for name in CATALOGS[catalog].names()]
SECTIONS = {"losses": [LossSettings], "models": [ModelSettings, TeacherSettings], "datasets": [DataSettings]}


def test_every_catalog_has_the_members_it_had() -> None:
    assert set(FEWEST) == set(CATALOGS)
    for catalog, fewest in FEWEST.items():
        assert len(CATALOGS[catalog].names()) >= fewest, catalog


def test_catalogs_have_nouns_of_their_own() -> None:
    assert len({catalog.noun for catalog in CATALOGS.values()}) == len(CATALOGS)


@pytest.mark.parametrize("catalog", CATALOGS)
def test_catalog_s_folder_says_what_it_is_and_has_its_contract(catalog: str) -> None:
    package = importlib.import_module(CATALOGS[catalog].package)
    assert (package.__doc__ or "").split("\n")[0].endswith(".")
    base = importlib.import_module(f"{CATALOGS[catalog].package}._base")
    assert base.__doc__
    assert getattr(base, CATALOGS[catalog].base).__doc__


@pytest.mark.parametrize(("catalog", "name"), MEMBERS)
def test_name_can_be_a_file_and_a_value_in_a_recipe(catalog: str, name: str) -> None:
    assert name.isidentifier()
    assert name == name.lower()
    assert not keyword.iskeyword(name)


@pytest.mark.parametrize(("catalog", "name"), MEMBERS)
def test_summary_is_one_sentence(catalog: str, name: str) -> None:
    summary = CATALOGS[catalog].summary(name)
    assert 10 <= len(summary) <= 120
    assert summary.endswith(".")
    assert summary[0] == summary[0].upper()


@pytest.mark.parametrize(("catalog", "name"), MEMBERS)
def test_member_is_a_documented_class_of_its_own_file(catalog: str, name: str) -> None:
    entry = CATALOGS[catalog].load(name)
    base = getattr(importlib.import_module(f"{CATALOGS[catalog].package}._base"), CATALOGS[catalog].base)
    assert issubclass(entry.member, base)
    assert entry.member is not base
    assert entry.member.__module__ == f"{CATALOGS[catalog].package}.{name}"
    assert "__doc__" in vars(entry.member)
    assert entry.member.__doc__


@pytest.mark.parametrize(("catalog", "name"), MEMBERS)
def test_options_forbid_what_they_do_not_know(catalog: str, name: str) -> None:
    options = CATALOGS[catalog].options(name)
    assert issubclass(options, Options)
    assert options.model_config["frozen"] is True
    required = {field for field, about in options.model_fields.items() if about.is_required()}
    with pytest.raises(ValidationError) as caught:
        options.model_validate({"no_such_option": 1})
    kinds = {(error["type"], error["loc"]) for error in caught.value.errors()}
    assert kinds == {("extra_forbidden", ("no_such_option",))} | {("missing", (field,)) for field in required}


@pytest.mark.parametrize(("catalog", "name"), MEMBERS)
def test_defaults_are_values_that_a_recipe_may_give(catalog: str, name: str) -> None:
    options = CATALOGS[catalog].options(name)
    if any(field.is_required() for field in options.model_fields.values()):
        assert catalog in ("losses", "methods", "datasets"), "only taps and places of files have no sensible default"
        return
    made = options()
    assert options.model_validate(made.model_dump()) == made


@pytest.mark.parametrize(("catalog", "name"), MEMBERS)
def test_options_do_not_hide_the_keys_of_their_table(catalog: str, name: str) -> None:
    own = set(CATALOGS[catalog].options(name).model_fields)
    for section in SECTIONS.get(catalog, []):
        assert not own & set(section.model_fields)


@pytest.mark.parametrize("catalog", [name for name in CATALOGS if name not in ("models", "datasets")])
def test_members_without_names_inside_refuse_an_argument(catalog: str) -> None:
    taken = [
        name
        for name in CATALOGS[catalog].names()
        if "argument" not in inspect.signature(CATALOGS[catalog].load(name).member).parameters
    ]
    name = taken[0]
    with pytest.raises(Exception, match="takes nothing after a colon"):
        CATALOGS[catalog].load(f"{name}:something")
