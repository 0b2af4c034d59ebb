"""recipe: every key checked, every problem told at once, values set from the command line."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from edgekd.errors import RecipeError
from edgekd.recipe import Recipe, json_schema, load_recipe, parse_recipe

BASE: dict[str, Any] = {"name": "r", "teacher": {"model": "resnet"}, "student": {"model": "tiny"}}
EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))


def having(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base recipe with these tables merged in."""
    values = copy.deepcopy(BASE)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


def problems(values: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values, overrides)
    return caught.value.problems


def test_base_recipe_is_filled_with_defaults() -> None:
    recipe = parse_recipe(BASE)
    assert recipe.data.name == "digits"
    assert [(loss.name, loss.weight) for loss in recipe.distill.losses] == [("cross_entropy", 0.1), ("kd", 0.9)]
    assert recipe.export.targets == ["onnxruntime_x86"]


def test_resolved_recipe_parses_to_itself() -> None:
    recipe = parse_recipe(having({"teacher": {"depth": 14}, "bench": {"budget_ms": 20}}))
    assert parse_recipe(recipe.resolved()) == recipe
    assert recipe.resolved()["teacher"]["depth"] == 14


UNKNOWN = [
    ({"sede": 1}, "sede: unknown key 'sede' in [top level]. Did you mean 'seed'?"),
    ({"compute": {"thread": 1}}, "compute.thread: unknown key 'thread' in [compute]. Did you mean 'threads'?"),
    (
        {"data": {"val_fracton": 0.1}},
        "data.val_fracton: unknown key 'val_fracton' in [data]. Did you mean 'val_fraction'?",
    ),
    (
        {"data": {"augment": {"flp": True}}},
        "data.augment.flp: unknown key 'flp' in [data.augment]. Did you mean 'flip'?",
    ),
    ({"teacher": {"dept": 20}}, "teacher.dept: unknown key 'dept' in [teacher]. Did you mean 'depth'?"),
    ({"teacher": {"trian": {}}}, "teacher.trian: unknown key 'trian' in [teacher]. Did you mean 'train'?"),
    (
        {"teacher": {"train": {"epoch": 2}}},
        "teacher.train.epoch: unknown key 'epoch' in [teacher.train]. Did you mean 'epochs'?",
    ),
    ({"student": {"widht": 8}}, "student.widht: unknown key 'widht' in [student]. Did you mean 'width'?"),
    ({"student": {"train": {}}}, "student.train: unknown key 'train' in [student]."),
    ({"watch": {"tracker": []}}, "watch.tracker: unknown key 'tracker' in [watch]. Did you mean 'trackers'?"),
    (
        {"distill": {"cache": {"topk": 5}}},
        "distill.cache.topk: unknown key 'topk' in [distill.cache]. Did you mean 'top_k'?",
    ),
    ({"distill": {"loses": []}}, "distill.loses: unknown key 'loses' in [distill]. Did you mean 'losses'?"),
    (
        {"distill": {"losses": [{"name": "kd", "temprature": 4.0}]}},
        "distill.losses.0.temprature: unknown key 'temprature' in [distill.losses.0].",
    ),
    (
        {"distill": {"train": {"lerning_rate": 0.1}}},
        "distill.train.lerning_rate: unknown key 'lerning_rate' in [distill.train].",
    ),
    ({"quantize": {"epoch": 1}}, "quantize.epoch: unknown key 'epoch' in [quantize]. Did you mean 'epochs'?"),
    (
        {"quantize": {"losses": [{"name": "kd", "tua": 4.0}]}},
        "quantize.losses.0.tua: unknown key 'tua' in [quantize.losses.0]. Did you mean 'tau'?",
    ),
    ({"export": {"target": []}}, "export.target: unknown key 'target' in [export]. Did you mean 'targets'?"),
    (
        {"export": {"licences": {"licence": "MIT"}}},
        "export.licences.licence: unknown key 'licence' in [export.licences].",
    ),
    (
        {"export": {"tensorrt": {"engin": "off"}}},
        "export.tensorrt.engin: unknown key 'engin' in [export.tensorrt]. Did you mean 'engine'?",
    ),
    ({"bench": {"budget": 5}}, "bench.budget: unknown key 'budget' in [bench]. Did you mean 'budget_ms'?"),
]


@pytest.mark.parametrize(("changes", "told"), UNKNOWN, ids=[told.split(":")[0] for _, told in UNKNOWN])
def test_unknown_key_is_told_with_its_table_and_the_nearest_name(changes: dict[str, Any], told: str) -> None:
    found = problems(having(changes))
    assert len(found) == 1
    assert found[0].startswith(told)


def _tables(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    yield prefix
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _tables(field.annotation, f"{prefix}.{name}" if prefix else name)


def test_unknown_keys_are_tried_in_every_table() -> None:
    tables = set(_tables(Recipe))
    assert len(tables) >= 12
    tried = {told.split(":")[0].rpartition(".")[0] for _, told in UNKNOWN}
    assert tables <= tried


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": "one"}, "seed: input should be a valid integer, got 'one'"),
        ({"seed": 1.5}, "seed: input should be a valid integer, got 1.5"),
        ({"seed": True}, "seed: input should be a valid integer, got True"),
        ({"teacher": {"train": {"lr": "0.1"}}}, "teacher.train.lr: input should be a valid number, got '0.1'"),
        ({"teacher": {"train": {"epochs": 0}}}, "teacher.train.epochs: input should be greater than or equal to 1"),
        ({"teacher": {"train": {"schedule": "cos"}}}, "teacher.train.schedule: input should be 'cosine', 'steps' or"),
        ({"teacher": {"depth": "20"}}, "teacher.depth: input should be a valid integer, got '20'"),
        ({"teacher": {"depth": 21}}, "teacher: depth must be 18, 34, 50 or 6n+2"),
        ({"data": {"size": [8]}}, "data.size: list should have at least 2 items"),
        ({"distill": {"losses": []}}, "distill.losses: list should have at least 1 item"),
        ({"distill": {"losses": [{"name": "kd", "tau": 0.0}]}}, "distill.losses.0.tau: input should be greater than"),
        ({"distill": {"losses": [{"weight": 1.0}]}}, "distill.losses.0.name: missing. Add it to the recipe."),
        ({"export": "onnx"}, "export: input should be a valid dictionary"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"name": ".."}, "name: string should match pattern"),
        ({"teacher": 3}, "teacher: input should be a valid dictionary"),
    ],
)
def test_wrong_value_is_told_with_its_key(changes: dict[str, Any], told: str) -> None:
    values = {**BASE, **changes} if not isinstance(next(iter(changes.values())), dict) else having(changes)
    found = problems(values)
    assert any(problem.startswith(told) for problem in found), found


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("table", "key"), [("bench", "budget_ms"), ("bench", "max_seconds"), ("data", "val_fraction")])
def test_numbers_must_be_finite(table: str, key: str, value: float) -> None:
    found = problems(having({table: {key: value}}))
    assert len(found) == 1
    assert found[0].startswith(f"{table}.{key}: input should be")


def test_rule_over_a_whole_table_does_not_repeat_the_table() -> None:
    found = problems(having({"export": {"targets": ["tensorrt", "tensorrt"]}}))
    assert found == ("recipe: export.targets: each target once",)


def test_missing_tables_are_told() -> None:
    found = problems({"name": "r"})
    assert found == ("teacher: missing. Add it to the recipe.", "student: missing. Add it to the recipe.")
    assert problems(having({"teacher": {}, "student": {}}) | {"teacher": {}})[0].startswith("teacher.model: missing")


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        having(
            {
                "sede": 1,
                "teacher": {"model": "resnt"},
                "student": {"width": "8", "dept": 3},
                "distill": {"method": "online", "train": {"lr": -1.0}},
                "quantize": {"calibrator": "mesh"},
                "export": {"targets": ["onnxruntime_x68"]},
                "bench": {"device": "gpu"},
            }
        ),
        ("oops",),
    )
    keys = [problem.split(":")[0] for problem in found]
    assert sorted(keys) == sorted(
        [
            "--set oops",
            "sede",
            "distill.train.lr",
            "teacher",
            "student.width",
            "student.dept",
            "distill.method",
            "quantize.calibrator",
            "export.targets.0",
            "bench.device",
        ]
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"name": "digit"}}, "data: There is no dataset 'digit'. Did you mean 'digits'?"),
        ({"teacher": {"model": "resnt"}}, "teacher: There is no model 'resnt'. Did you mean 'resnet'?"),
        ({"student": {"model": "wnr"}}, "student: There is no model 'wnr'. Did you mean 'wrn'?"),
        (
            {"distill": {"losses": [{"name": "attentoin"}]}},
            "distill.losses.0: There is no loss 'attentoin'. Did you mean 'attention'?",
        ),
        (
            {"quantize": {"losses": [{"name": "kd"}, {"name": "hnt"}]}},
            "quantize.losses.1: There is no loss 'hnt'. Did you mean 'hint'?",
        ),
        ({"distill": {"method": "ofline"}}, "distill.method: There is no method 'ofline'. Did you mean 'offline'?"),
        (
            {"quantize": {"calibrator": "precentile"}},
            "quantize.calibrator: There is no calibrator 'precentile'. Did you mean 'percentile'?",
        ),
        (
            {"export": {"targets": ["tensort"]}},
            "export.targets.0: There is no target 'tensort'. Did you mean 'tensorrt'?",
        ),
        ({"bench": {"device": "cpus"}}, "bench.device: There is no device 'cpus'. Did you mean 'cpu'?"),
        ({"data": {"name": "digits:8"}}, "data: dataset 'digits:8': 'digits' takes nothing after a colon."),
    ],
)
def test_unknown_member_is_told_with_the_nearest(changes: dict[str, Any], told: str) -> None:
    found = problems(having(changes))
    assert len(found) == 1
    assert found[0].startswith(told)


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("distill.train.epochs=7", ("distill", "train", "epochs"), 7),
        ("distill.baseline=false", ("distill", "baseline"), False),
        ("distill.train.lr = 0.5", ("distill", "train", "lr"), 0.5),
        ("teacher.model=wrn", ("teacher", "model"), "wrn"),
        ('teacher.model="wrn"', ("teacher", "model"), "wrn"),
        ("teacher.weights=../a b/t.safetensors", ("teacher", "weights"), "../a b/t.safetensors"),
        ("student.width=12", ("student", "width"), 12),
        ('export.targets=["tensorrt"]', ("export", "targets"), ["tensorrt"]),
        ("data.size=[12, 12]", ("data", "size"), [12, 12]),
        ("bench.budget_ms=1e2", ("bench", "budget_ms"), 100.0),
    ],
)
def test_override_sets_a_value(override: str, where: tuple[str, ...], value: object) -> None:
    found: Any = parse_recipe(BASE, (override,)).resolved()
    for key in where:
        found = found[key]
    assert found == value


def test_later_override_wins_and_the_values_given_are_not_changed() -> None:
    values = having({"seed": 1})
    assert parse_recipe(values, ("seed=2", "seed=3")).seed == 3
    assert values["seed"] == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed", "--set seed: must look like a.b=value"),
        ("=3", "--set =3: must look like a.b=value"),
        ("name.first=x", "--set name.first=x: 'name' is a value, not a table"),
        ("distil.epochs=3", "distil: unknown key 'distil' in [top level]. Did you mean 'distill'?"),
        ("distill.train.epochs=three", "distill.train.epochs: input should be a valid integer, got 'three'"),
    ],
)
def test_wrong_override_is_a_problem(override: str, told: str) -> None:
    assert problems(BASE, (override,))[0].startswith(told)


def test_toml_damage_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\n[teacher\nmodel = "tiny"\n')
    with pytest.raises(RecipeError, match=r"r\.toml: 1 problem\n  not valid TOML: .*line 2"):
        load_recipe(path)
    path.write_text('name = "r"\nname = "s"\n')
    with pytest.raises(RecipeError, match="not valid TOML: Cannot overwrite a value"):
        load_recipe(path)
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match="not valid TOML: 'utf-8' codec"):
        load_recipe(path)


def test_missing_recipe_and_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.toml: 1 problem\n  no such file\. `edgekd init FOLDER` writes"):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match="is a folder, not a recipe file"):
        load_recipe(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="cannot be read: Not a directory"):
        load_recipe(tmp_path / "file" / "r.toml")


USER_CODE = """
import torch
from pydantic import Field

from edgekd import spec
from edgekd.losses._base import Loss


def network(classes, input_shape, width=4):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(classes))


class Mine(Loss):
    family = "response"

    class Options(spec.Options):
        power: float = Field(1.0, gt=0.0)

    def forward(self, step):
        return step.student.logits.mean()
"""


def recipe_file(folder: Path, module: str, *, allowed: bool, more: str = "") -> Path:
    (folder / f"{module}.py").write_text(USER_CODE)
    path = folder / "r.toml"
    path.write_text(
        f'name = "r"\nallow_user_code = {str(allowed).lower()}\n[teacher]\nmodel = "tiny"\n[student]\n'
        f'model = "{module}:network"\nwidth = 3\n[distill]\nlosses = [{{ name = "{module}:Mine"{more} }}]\n'
    )
    return path


def test_user_code_is_refused_unless_the_recipe_allows_it(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "user_code_refused", allowed=False)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["student", "distill.losses.0"]
    assert all("put allow_user_code = true" in problem for problem in caught.value.problems)
    assert "user_code_refused" not in __import__("sys").modules


def test_user_code_beside_the_recipe_is_found_and_its_options_are_checked(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, "user_code_found", allowed=True))
    assert recipe.student.options == {"width": 3}
    with pytest.raises(RecipeError, match=r"distill\.losses\.0\.powr: unknown key 'powr' .* Did you mean 'power'\?"):
        load_recipe(recipe_file(tmp_path, "user_code_found", allowed=True, more=", powr = 2.0"))


def test_user_code_can_be_allowed_by_an_override(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "user_code_override", allowed=False)
    assert load_recipe(path, ("allow_user_code=true",)).student.model == "user_code_override:network"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("def other():\n    pass\n", "module '{0}' has no 'network'"),
        ("import nothing_like_this\n", "cannot import 'nothing_like_this'"),
        ("def network(:\n", "importing '{0}' failed: SyntaxError"),
        ("1 / 0\n", r"importing '{0}' failed: ZeroDivisionError: division by zero \(.*{0}\.py, line 1\)"),
        ("from json import nothing\n", "importing '{0}' failed: ImportError: cannot import name 'nothing'"),
    ],
)
def test_broken_user_code_is_a_problem_of_the_recipe(
    tmp_path: Path, content: str, told: str, request: pytest.FixtureRequest
) -> None:
    module = f"broken_user_code_{abs(hash(content))}"
    path = recipe_file(tmp_path, module, allowed=True)
    (tmp_path / f"{module}.py").write_text(content)
    with pytest.raises(RecipeError, match=told.format(module)):
        load_recipe(path)


@pytest.mark.parametrize("name", [":network", "a b:network", ".relative:network", "module:net work"])
def test_misshapen_user_code_is_a_problem_of_the_recipe(name: str) -> None:
    values = having({"allow_user_code": True, "student": {"model": name}})
    assert problems(values) == (f"student: model '{name}': write package.module:name.",)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads_and_its_name_is_its_file_s(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


def _conforms(value: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any], where: str) -> None:
    """Check a value against the parts of JSON Schema that describe the recipe's shape."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        kinds = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
        fit = [
            one
            for one in schema["anyOf"]
            if ("const" in one and value == one["const"])
            or isinstance(value, kinds.get(one.get("type", ""), (int, float) if "type" in one else ()))
        ]
        assert fit, f"{where}: {value!r} fits none of {schema['anyOf']}"
        return
    if isinstance(value, dict):
        assert schema["type"] == "object", where
        assert set(schema.get("required", [])) <= set(value), where
        for key, inner in value.items():
            if key in schema["properties"]:
                _conforms(inner, schema["properties"][key], definitions, f"{where}.{key}")
            else:
                assert schema.get("additionalProperties") is True, f"{where}.{key}"
    elif isinstance(value, list):
        assert schema["type"] == "array", where
        for index, inner in enumerate(value):
            _conforms(inner, schema["items"], definitions, f"{where}[{index}]")
    else:
        expected = {str: "string", bool: "boolean", int: ("integer", "number"), float: "number"}[type(value)]
        assert schema.get("type") in expected if isinstance(expected, tuple) else schema.get("type") == expected, where
        assert "enum" not in schema or value in schema["enum"], where


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_json_schema_accepts_every_example(path: Path) -> None:
    schema = json_schema()
    _conforms(tomllib.loads(path.read_text(encoding="utf-8")), schema, schema["$defs"], "recipe")


def test_json_schema_closes_every_table_but_those_of_members() -> None:
    schema = json_schema()
    open_tables = {name for name, one in schema["$defs"].items() if one.get("additionalProperties") is not False}
    assert schema["additionalProperties"] is False
    members = {"CorrectionSettings", "DataSettings", "LossSettings", "ModelSettings"}
    assert open_tables == members | {"AssistantSettings", "TeacherSettings"}
    assert len(schema["$defs"]) >= 12
    for reference in _references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
