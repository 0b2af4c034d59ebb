"""README and docs: links resolve, commands parse, examples load, and every key, option, field and message is real."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgekd.catalog import CATALOGS
from edgekd.cli.main import app
from edgekd.errors import EdgeKDError
from edgekd.recipe import DistillSettings, LossSettings, QuantizeSettings, Recipe, load_recipe, parse_recipe
from edgekd.report import Report

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = COMMANDS.commands


def parameters_of(verb: Any) -> list[Any]:
    """Of a verb, or of all the verbs under it."""
    inner = getattr(verb, "commands", {}).values()
    return [*verb.params, *(parameter for one in inner for parameter in parameters_of(one))]


NOUNS = {"datasets": "Data set", "models": "Model", "losses": "Loss", "methods": "Method"}
"""Catalogs whose members take options from a recipe, and what recipe.md calls one of them."""
BASE = {"name": "fragment", "teacher": {"model": "tiny"}, "student": {"model": "tiny"}}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def page_ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def commands(page: Path) -> list[list[str]]:
    """Every `edgekd` command of a page's shell blocks, as arguments."""
    found = []
    for block in blocks(page):
        if block.language == "console":
            lines = block.text.splitlines()
            # with a prompt, the other lines are output
            entered = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
            found += [call for line in entered for call in _edgekd_calls(line)]
    return found


def _edgekd_calls(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
    lexer.whitespace_split = True
    call: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;>"):
            if call[:1] == ["edgekd"]:
                yield call[1:]
            call = []
        else:
            call.append(word)


def sections(page: Path) -> dict[str, str]:
    """The text under each heading, by heading."""
    parts = re.split(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by each name in backticks in their first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if line.startswith("|") and not set(line) <= set("|-"):
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells))
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_every_relative_link_resolves(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", prose(page))
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link} (has {sorted(anchors(target))})"


def test_links_are_found_at_all() -> None:
    assert sum(len(re.findall(r"\]\(([^)]+)\)", prose(page))) for page in PAGES) >= 60


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_every_command_parses(page: Path) -> None:
    for arguments in commands(page):
        assert arguments[0] in VERBS, f"{page.name}: edgekd {shlex.join(arguments)}"
        try:
            VERBS[arguments[0]].make_context(arguments[0], list(arguments[1:]))
        except Exception as error:
            told = getattr(error, "format_message", lambda error=error: repr(error))()
            pytest.fail(f"{page.name}: edgekd {shlex.join(arguments)}: {told}")


def test_commands_are_found_and_a_wrong_one_is_refused() -> None:
    found = [shlex.join(arguments) for page in PAGES for arguments in commands(page)]
    assert len(found) >= 25
    assert "run examples/digits.toml" in found  # behind `pip install . &&`
    assert {arguments.split()[0] for arguments in found} == set(VERBS)
    with pytest.raises(Exception, match="No such option"):
        VERBS["run"].make_context("run", ["recipe.toml", "--epochs", "3"])


def test_readme_has_the_two_commands_word_for_word() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "```console\npip install . && edgekd run examples/digits.toml\n```" in text
    # what .ci/run takes: the first fenced block under the heading
    tests = re.search(r"^## Tests$.*?^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert tests is not None
    assert tests[1] == "pip install '.[test]' && pytest\n"


def test_readme_leaves_places_for_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("digits", "fashion_mnist", "latency", "quantization", "families", "calibration", "tensorrt"):
        assert re.search(rf"<!-- results:{name} -->.*?<!-- /results:{name} -->", text, re.DOTALL), name


def test_readme_shows_the_example_as_it_is() -> None:
    example = tomllib.loads((ROOT / "examples" / "digits.toml").read_text(encoding="utf-8"))
    shown = [tomllib.loads(block.text) for block in all_blocks("toml") if block.page.name == "README.md"]
    assert example in shown


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_a_page_with_every_option(verb: str) -> None:
    page = ROOT / "docs" / f"{verb}.md"
    text = prose(page)
    assert text.startswith(f"# edgekd {verb}\n")
    assert "Exit codes" in text
    assert any(arguments[0] == verb for arguments in commands(page))
    documented = " ".join(rows(text))
    for parameter in parameters_of(VERBS[verb]):
        names = [name for name in parameter.opts if name not in ("--help", "-h")]
        for name in names if parameter.param_type_name == "option" else [parameter.metavar]:
            assert name.replace("|", "\\|") in documented, f"{page.name}: {name}"


def test_no_page_documents_an_option_that_is_not_there() -> None:
    known = {
        name
        for verb in VERBS.values()
        for parameter in parameters_of(verb)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {"--version", "--help"}
    for page in PAGES:
        for name in re.findall(r"`(--[a-z0-9-]+)", prose(page)):
            assert name in known, f"{page.name}: {name}"


def own_code(folder: Path) -> None:
    """Write the python blocks that name their file into a folder."""
    for block in all_blocks("python"):
        if named := re.match(r"# (\w+\.py)\n", block.text):
            (folder / named[1]).write_text(block.text, encoding="utf-8")


def forget(folder: Path) -> None:
    """Take a folder of user code off the import path again."""
    sys.path[:] = [place for place in sys.path if Path(place) != folder]
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("block", all_blocks("toml"), ids=lambda block: f"{block.page.name}-{len(block.text)}")
def test_every_recipe_and_fragment_loads(block: Block, tmp_path: Path) -> None:
    own_code(tmp_path)
    values = tomllib.loads(block.text)
    try:
        parse_recipe(values if "name" in values else {**BASE, **values}, source=block.page.name, folder=tmp_path)
    finally:
        forget(tmp_path)


def test_recipes_and_code_are_found_at_all() -> None:
    assert len(all_blocks("toml")) >= 7
    assert len(all_blocks("python")) >= 3


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.name)
def test_every_example_loads(file: Path) -> None:
    assert load_recipe(file).name == file.stem


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.text.split("\n")[0].strip("# "))
def test_every_python_example_runs_and_keeps_its_doctests(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(block.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert doctest.testmod(module).failed == 0
    assert ("def logit_distance" in block.text) == (doctest.testmod(module).attempted > 0)


def test_worked_example_of_a_loss_keeps_the_contract(tmp_path: Path) -> None:
    import torch

    from edgekd.losses._base import Outputs, Step

    own_code(tmp_path)
    sys.path.insert(0, str(tmp_path))
    try:
        member = CATALOGS["losses"].load("my_losses:LogitDistance", allow_user_code=True).member
    finally:
        forget(tmp_path)
    student, teacher = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[3.0, 2.0]], requires_grad=True)
    step = Step(Outputs(student), (Outputs(teacher),), torch.eye(2)[:1], torch.arange(1), epoch=0, progress=0.0)
    value = member(member.Options(scale=2.0))(step)
    value.backward()
    assert value.item() == 0.25  # ((1 - 3) / 2)^2 / 2 classes / 2
    assert teacher.grad is None
    assert student.grad is not None


def tables(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(table of the recipe, its model), the recipe itself as "Top level"."""
    yield prefix or "Top level", model
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from tables(kind, f"{prefix}.{name}" if prefix else name)


def recipe_sections() -> dict[str, str]:
    """The text of recipe.md by table name; one heading may name several tables."""
    found: dict[str, str] = {}
    for heading, text in sections(ROOT / "docs" / "recipe.md").items():
        names = re.findall(r"`\[?([\w.]+)\]?`", heading) if not heading.startswith(tuple(NOUNS.values())) else []
        found.update(dict.fromkeys([*names, heading], text))
    return found


def default_cell(field: FieldInfo) -> str | None:
    """What the column "default" must say; None where it is said in words."""
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, list) and any(isinstance(one, BaseModel) for one in field.default):
        return None
    return f"`{json.dumps(field.default)}`"


def check_table(title: str, text: str, fields: Mapping[str, FieldInfo]) -> int:
    documented = rows(text)
    for name, field in fields.items():
        assert name in documented, f"recipe.md: '{title}' does not document '{name}'"
        cells = documented[name]
        expected = default_cell(field)
        assert expected is None or cells[2] == expected, f"recipe.md: {title}.{name}: default {cells[2]}, is {expected}"
        assert len(cells[1]) > 2, f"recipe.md: {title}.{name} has no type"
        assert len(cells[3]) > 2, f"recipe.md: {title}.{name} has no meaning"
    keys = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert keys <= set(fields), f"recipe.md: '{title}' documents keys that are not there: {keys - set(fields)}"
    return len(fields)


def test_every_recipe_key_is_documented_with_its_default() -> None:
    texts, count = recipe_sections(), 0
    for table, model in tables(Recipe):
        fields = {
            name: field
            for name, field in model.model_fields.items()
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
        }
        assert table in texts, f"recipe.md has no section for [{table}]"
        count += check_table(table, texts[table], fields)
    for owner in (DistillSettings, QuantizeSettings):
        assert LossSettings in _inner(owner.model_fields["losses"].annotation)
    for table in ("distill.losses", "quantize.losses"):
        count += check_table(table, texts[table], LossSettings.model_fields)
    assert count >= 80


def _inner(annotation: Any) -> set[Any]:
    return {annotation, *(deep for one in get_args(annotation) for deep in _inner(one))}


@pytest.mark.parametrize("catalog", sorted(NOUNS))
def test_every_option_of_every_member_is_documented(catalog: str) -> None:
    texts = recipe_sections()
    names = CATALOGS[catalog].names()
    assert len(names) >= 4
    for name in names:
        title = f"{NOUNS[catalog]} `{name}`"
        assert title in texts, f"recipe.md has no section '{title}'"
        check_table(title, texts[title], CATALOGS[catalog].options(name).model_fields)


def test_every_member_is_named_in_the_documents() -> None:
    text = "\n".join(prose(page) for page in PAGES)
    for catalog in CATALOGS.values():
        for name in catalog.names():
            assert f"`{name}`" in text or f"`{name}:" in text, f"{catalog.noun} {name}"


def test_every_field_of_the_report_is_documented() -> None:
    texts = sections(ROOT / "docs" / "report.md")
    check_fields("report.json", texts["report.json"], Report)
    records = 0
    for name, field in Report.model_fields.items():
        for kind in _inner(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                listed = "list" in str(field.annotation)
                check_fields(name, texts[f"`{name}[]`" if listed else f"`{name}`"], kind)
                records += 1
    assert records >= 12


def check_fields(title: str, text: str, model: type[BaseModel]) -> None:
    first_cells = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    documented = set(re.findall(r"`(\w+)`", first_cells))
    assert documented == set(model.model_fields), f"report.md: {title}"


@cache
def source_templates() -> tuple[str, ...]:
    """Every string of the program, what is filled in at run time as an ellipsis, without backticks."""
    found = []
    for folder in ("edgekd", "cli", "calibration"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
                    found.append("".join(str(part) for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(text.replace("`", "") for text in found)


def is_said(text: str) -> bool:
    """Whether some string of the program has the fixed parts of `text`, in order."""
    parts = [part for part in text.replace("`", "").split("…") if part]
    return any(_has_in_order(template, parts) for template in source_templates())


def _has_in_order(text: str, parts: list[str]) -> bool:
    position = 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def error_texts() -> list[str]:
    """The first cells of the tables of errors.md."""
    found = []
    for line in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cell = line.split(" | ")[0].removeprefix("| ")
            found.append(cell.removeprefix("``").removesuffix("``") if cell.startswith("``") else cell.strip("`"))
    return found


def test_every_error_text_is_one_that_the_program_says() -> None:
    texts = error_texts()
    assert len(texts) >= 50
    assert [text for text in texts if not is_said(text)] == []
    assert not is_said("Something … that nobody says")


def test_every_exit_code_is_in_the_readme() -> None:
    codes = {kind.exit_code for kind in _subclasses(EdgeKDError)} | {0, 70, 130, 143}
    text = sections(ROOT / "README.md")["Exit codes"]
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in cell.split(", ")}
    assert listed == codes


def _subclasses(kind: type[EdgeKDError]) -> Iterator[type[EdgeKDError]]:
    yield kind
    for one in kind.__subclasses__():
        if one.__module__.startswith("edgekd."):
            yield from _subclasses(one)


def test_every_extra_is_in_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = sections(ROOT / "README.md")["Installation and extras"]
    assert set(project["optional-dependencies"]) <= set(rows(text))


def test_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_no_page_holds_a_path_of_one_machine_or_unfinished_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.])/(?:work|tmp|root|home|Users)/\S*|\b(?:TODO|FIXME|TBD|XXX)\b", text)
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_every_file_of_ours_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(
        r"`((?:edgekd|cli|calibration|tests|benchmarks|examples|docs)/[\w./-]*\.(?:py|toml|md))`", prose(page)
    )
    # adding-a-member.md names the files that its reader would add
    missing = {one for one in named if not (ROOT / one).exists() and "logit_distance" not in one}
    assert missing == set()
