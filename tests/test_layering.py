"""The layers of edgekd, read from the syntax trees: imports go one way, and each job has one owner.

Level 6 is the command line, 5 the pipeline, 4 the operations, 3 the catalogs' members and contracts, 2 what they
share, 1 the vocabulary. A module may import its own level and lower ones, with the exceptions that are named here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekd.catalog import CATALOGS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"edgekd": "edgekd", "cli": "edgekd.cli", "calibration": "edgekd.calibration"}
FEWEST_FILES = 120

VOCABULARY = {"edgekd", "edgekd.errors", "edgekd.spec"}
# what more than one level above uses; `_x` files are the private parts of the file named beside them
SHARED = {
    "edgekd.taps",
    "edgekd.augment",
    "edgekd.batches",
    "edgekd._sampling",  # batches, and the engine's share of them
    "edgekd._step_clock",  # the engine, and what a step runs through
    "edgekd._background",  # batches, image files, the cache, the engine's checkpoint
    "edgekd._group",  # everything that several processes do together
    "edgekd._messages",  # the tensors among it
    "edgekd.weights",
    "edgekd._quiet",  # models and operations
    "edgekd._files",  # weights and the engine's checkpoint
    "edgekd.artifact",
    "edgekd._sealing",  # artifact
    "edgekd.catalog",
    "edgekd._settings",  # recipe
    "edgekd._settings_training",  # recipe
    "edgekd.recipe",
    "edgekd.starter",  # writes the recipe that the user starts from
    "edgekd.templates",
}
MEMBER_PACKAGES = {catalog.package for catalog in CATALOGS.values()}
OPERATIONS = {
    "edgekd.agreement",
    "edgekd.audit",
    "edgekd.bundle",
    "edgekd.cache",
    "edgekd.distillation_quality",
    "edgekd.doctor",
    "edgekd.engine",
    "edgekd.estimate",
    "edgekd.evaluate",
    "edgekd.export",
    "edgekd.feeds",
    "edgekd.measure",
    "edgekd.mixed",
    "edgekd.placement",
    "edgekd.quantize",
    "edgekd.quantize_onnx",
    "edgekd.reachable",
    "edgekd.report",
    "edgekd.sensitivity",
}
# a shared file that needs a contract of a catalog: batches are drawn from any data set's Samples
UPWARD = {("edgekd.batches", "edgekd.datasets._base")}
# which contract another catalog's members and contracts may know
CONTRACTS = {
    ("edgekd.methods", "edgekd.losses._base"),  # a method gives the terms of losses
    ("edgekd.targets", "edgekd.calibration._base"),  # a target's quantizer places observers
    ("edgekd.targets", "edgekd.calibration._fake_quantize"),
    ("edgekd.targets", "edgekd.calibration._pair_sums"),  # what saturates in a file is what the grids avoid
    ("edgekd.corrections", "edgekd.calibration._fake_quantize"),  # a correction reads the scales of weights
    ("edgekd.corrections", "edgekd.calibration._pair_sums"),  # and may not break their bound
    ("edgekd.corrections", "edgekd.targets._base"),  # its context tells the target's grids
}


@dataclass(frozen=True)
class Module:
    """One file: its dotted name and its syntax tree."""

    name: str
    file: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The catalog or package that it lies in."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def private(self) -> bool:
        """Whether its own folder alone may import it, or its contract."""
        return self.name.rpartition(".")[2].startswith("_")


def _modules() -> dict[str, Module]:
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = Module(name, file, ast.parse(file.read_text(encoding="utf-8")))
    return found


MODULES = _modules()


def level(name: str) -> int:
    """Where a module stands; a private file of the top folder stands with the operations unless it is shared."""
    if name.startswith("edgekd.cli"):
        return 6
    if name.startswith("edgekd.pipeline"):
        return 5
    if any(name == package or name.startswith(f"{package}.") for package in MEMBER_PACKAGES):
        return 3
    if name == "edgekd.agent" or name.startswith("edgekd.agent."):
        return 2
    if name in SHARED:
        return 2
    if name in VOCABULARY:
        return 1
    if name in OPERATIONS or name.startswith("edgekd._"):
        return 4
    raise AssertionError(f"{name} has no level: say in tests/test_layering.py where it stands")


def imports(module: Module, *, for_types: bool = True) -> Iterator[str]:
    """The modules of edgekd that a module imports, anywhere in it."""
    skipped = set()
    if not for_types:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped |= {id(inner) for one in node.body for inner in ast.walk(one)}
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            # on a device the program's package has another name
            assert node.level == (1 if module.name.startswith("edgekd.agent.") and node.level else 0), (
                f"{module.name}: imports are absolute"
            )
            source = ".".join(part for part in (module.package if node.level else "", node.module or "") if part)
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield from (name for name in (whole if whole in MODULES else source,) if name in MODULES)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


EDGES = sorted({(module.name, target) for module in MODULES.values() for target in imports(module)})


def calls(module: Module) -> Iterator[str]:
    """The source of what each call of a module calls."""
    yield from (ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def test_every_file_is_looked_at() -> None:
    assert len(MODULES) >= FEWEST_FILES
    assert len(EDGES) >= 300
    assert {level(name) for name in MODULES} == {1, 2, 3, 4, 5, 6}


def test_imports_never_go_up() -> None:
    wrong = [
        f"{source} (level {level(source)}) imports {target} (level {level(target)})"
        for source, target in EDGES
        if level(target) > level(source) and (source, target) not in UPWARD
    ]
    assert wrong == []


def test_exceptions_are_still_needed() -> None:
    assert set(EDGES) >= UPWARD
    used = {(MODULES[source].package, target) for source, target in EDGES}
    assert used >= CONTRACTS


def test_imports_have_no_circle() -> None:
    graph = {name: sorted(set(imports(module, for_types=False)) - {name}) for name, module in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_program_for_devices_needs_nothing_else_of_ours_and_only_devices_and_above_need_it() -> None:
    inside = {name for name in MODULES if name.startswith("edgekd.agent.")}
    assert len(inside) >= 8
    allowed = {"numpy", "onnxruntime", *sys.stdlib_module_names}
    for name in sorted(inside):
        for node in ast.walk(MODULES[name].tree):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").partition(".")[0] in allowed, name
    users = {source for source, target in EDGES if target in inside and source not in inside}
    # a TensorRT engine is kept and timed by the same code on this machine and on a device
    shared = {"edgekd.targets._engine", "edgekd.targets._trt_runner"}
    assert all(name.startswith("edgekd.devices.") or name in shared or level(name) >= 4 for name in users)


def test_nobody_imports_the_command_line() -> None:
    assert [edge for edge in EDGES if level(edge[1]) == 6 and level(edge[0]) != 6] == []


def test_members_know_only_their_own_folder_and_contracts() -> None:
    wrong = [
        f"{source} imports {target}"
        for source, target in EDGES
        if level(source) == level(target) == 3
        and MODULES[source].package != MODULES[target].package
        and (MODULES[source].package, target) not in CONTRACTS
    ]
    assert wrong == []


def test_members_do_not_import_each_other() -> None:
    members = {f"{catalog.package}.{name}" for catalog in CATALOGS.values() for name in catalog.names()}
    assert len(members) >= 24
    # by name through the catalog, so that removing a file removes a member and breaks nothing
    assert [edge for edge in EDGES if edge[1] in members] == []


def test_private_files_are_imported_from_their_own_folder_or_from_above() -> None:
    wrong = [
        f"{source} imports {target}"
        for source, target in EDGES
        if MODULES[target].private
        and MODULES[source].package != MODULES[target].package
        and level(source) <= level(target)
        and (MODULES[source].package, target) not in CONTRACTS
        and (source, target) not in UPWARD
    ]
    assert wrong == []


def test_command_line_reaches_operations_by_their_public_files_only() -> None:
    # the plan that a progress display is told, and numbers that read the same in every rendering
    allowed = {"edgekd.pipeline._planned", "edgekd._report_format", "edgekd._group"}
    wrong = [
        edge
        for edge in EDGES
        if edge[0].startswith("edgekd.cli") and MODULES[edge[1]].private and edge[1] not in allowed
        if not edge[1].startswith("edgekd.cli")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("what", "owners", "is_it"),
    [
        # files without a run are sealed as a run would have left them, for as long as they are packed
        (
            "seals artifacts",
            {"edgekd.pipeline._run", "edgekd.pipeline._packing_files"},
            lambda call: call in ("seal", "artifact.seal"),
        ),
        ("steps an optimizer", {"edgekd._step"}, lambda call: call.endswith("optimizer.step")),
        ("backpropagates", {"edgekd._step"}, lambda call: call.endswith(".backward")),
        # the cold-start probe is a script of its own, and its stdout is its answer to the process that started it
        (
            "prints",
            {"edgekd.devices._arm64_run", "edgekd.agent.cold"},
            lambda call: call in ("print", "sys.stdout.write", "sys.stderr.write"),
        ),
        (
            "loads pickles that could run code",
            set(),
            lambda call: call in ("pickle.load", "pickle.loads", "joblib.load", "dill.load"),
        ),
    ],
)
def test_each_job_has_one_owner(what: str, owners: set[str], is_it: object) -> None:
    found = {module.name for module in MODULES.values() if any(is_it(call) for call in calls(module))}  # type: ignore[operator]
    assert found == owners, what


def test_torch_load_is_always_weights_only() -> None:
    found = 0
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found += 1
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True", module.name
    assert found >= 2


def test_consoles_belong_to_the_command_line() -> None:
    writers = {
        module.name
        for module in MODULES.values()
        if any(call in ("Console", "rich.print", "typer.echo", "Progress") for call in calls(module))
    }
    assert all(name.startswith("edgekd.cli") for name in writers)
    assert writers


def test_only_the_command_line_reads_arguments_and_ends_the_process() -> None:
    users = {
        module.name
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.argv", "sys.exit", "os._exit")
    }
    assert {name for name in users if not name.startswith("edgekd.cli")} <= {
        "edgekd.devices._arm64_run",
        "edgekd.agent.cold",
    }


def test_threads_that_compute_come_from_one_place() -> None:
    makers: dict[str, set[str]] = {"ThreadPoolExecutor": set(), "Thread": set()}
    for module in MODULES.values():
        for call in calls(module):
            if (name := call.rpartition(".")[2]) in makers:
                makers[name].add(module.name)
    # any other's operations of torch would get threads of OpenMP, and the training would sleep between its own
    assert makers["ThreadPoolExecutor"] == {"edgekd._background"}
    assert makers["Thread"] <= {  # these only read sensors, talk to devices and services, or are told a number
        "edgekd._background",
        "edgekd._trackers",
        "edgekd.devices._gpu_place",
        "edgekd.devices._watching",
    }


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "tools"}
    assert [name for name in MODULES if name.rpartition(".")[2].strip("_") in drawers] == []


def test_public_functions_take_no_kwargs() -> None:
    wrong, looked = [], 0
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
                looked += 1
                if node.args.kwarg is not None:
                    wrong.append(f"{module.name}.{node.name}")
    assert looked >= 400
    assert wrong == []


def test_nothing_catches_everything_and_goes_on() -> None:
    wrong = []
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
                does = [type(one) for one in ast.walk(ast.Module(node.body, []))]
                if ast.Raise not in does and ast.Return not in does:
                    wrong.append(f"{module.name}:{node.lineno}")
    assert wrong == []


def test_every_module_says_what_it_is() -> None:
    wrong = [name for name, module in MODULES.items() if not (ast.get_docstring(module.tree) or "").strip()]
    assert wrong == []
