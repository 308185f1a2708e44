"""The fences between the floors of the house, held by reading the imports and calls."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("models", "data", "views", "utils", "commands")
SOURCES = [*ROOT.glob("*.py"), *(path for floor in FLOORS for path in (ROOT / floor).glob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES)}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, wherever it stands; "from a import b" gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def attributes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every attribute in the code, such as torch.distributed.barrier; strings do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)


def uses(tree: ast.AST, *names: str) -> list[tuple[int, str]]:
    """Where the code imports or reaches any of these dotted names, or something below them."""
    found = [*imports(tree), *attributes(tree)]
    return [(line, each) for line, each in found if any(f"{each}.".startswith(f"{name}.") for name in names)]


def files_that_use(*names: str) -> dict[str, list[tuple[int, str]]]:
    return {path: found for path, tree in TREES.items() if (found := uses(tree, *names))}


def test_the_reader_notices() -> None:
    code = "import torch\nfrom data import x\n\ndef f():\n    import data.y\n    torch.save(1)\n    'torch.load'\n"
    assert uses(ast.parse(code), "data") == [(2, "data.x"), (5, "data.y")]
    assert uses(ast.parse(code), "torch.save", "torch.load") == [(6, "torch.save")]
    assert uses(ast.parse("import database"), "data") == []
    assert len(TREES) > 30


@pytest.mark.parametrize(
    ("floor", "forbidden"),
    [
        ("models", ("data", "views", "commands", "tables", "trainer", "tester", "main_train", "main_test")),
        ("data", ("models", "views", "commands", "tables", "trainer", "tester", "main_train", "main_test")),
        ("views", ("models", "data", "commands", "tables", "trainer", "tester", "main_train", "main_test")),
        ("utils", ("models", "data", "views", "commands", "tables", "trainer", "tester", "main_train", "main_test")),
        ("commands", ("main_test",)),
        ("", ("tests", "benchmarks")),
    ],
)
def test_floors_do_not_import_upwards(floor: str, forbidden: tuple[str, ...]) -> None:
    for path, tree in TREES.items():
        if path.startswith(floor):
            assert [each for each in imports(tree) if each[1].split(".")[0] in forbidden] == [], path


OWNERS = {
    "files of tensors": (("torch.save", "torch.load"), {"utils/utils_state_file.py"}),
    "process group": (
        ("torch.distributed", "torch.nn.parallel"),
        {"utils/utils_dist.py", "utils/utils_signal.py", "models/model_base.py"},
    ),
    "figures": (("matplotlib",), {"utils/utils_visualise.py", "utils/utils_curves.py", "utils/utils_report.py"}),
    "global seeds": (
        (
            "random.seed",
            "np.random.seed",
            "numpy.random.seed",
            "torch.manual_seed",
            "torch.seed",
            "torch.default_generator",
            "torch.cuda.manual_seed",
            "torch.cuda.manual_seed_all",
        ),
        {"utils/utils_seed.py"},
    ),
    "YAML": (("yaml",), {"utils/utils_option_file.py", "utils/utils_option_yaml.py"}),
}


@pytest.mark.parametrize("subject", OWNERS)
def test_each_side_effect_has_one_owner(subject: str) -> None:
    names, owners = OWNERS[subject]
    users = files_that_use(*names)
    assert {path: found for path, found in users.items() if path not in owners} == {}
    assert users, "the names are misspelt: nobody uses them"


def test_models_know_of_ranks_only_the_wrapper() -> None:
    found = {name for _, name in uses(TREES["models/model_base.py"], "torch.distributed", "torch.nn.parallel")}
    assert found == {"torch.nn.parallel.DistributedDataParallel"}


def test_the_signal_only_holds_the_handle_of_a_collective() -> None:
    found = {name for _, name in uses(TREES["utils/utils_signal.py"], "torch.distributed")}
    assert found <= {"torch.distributed", "torch.distributed.Work"}


def test_only_tests_arm_a_failpoint() -> None:
    by_import = files_that_use("utils.utils_failpoint")
    assert {name for found in by_import.values() for _, name in found} == {"utils.utils_failpoint.reached"}
    assert files_that_use("utils_failpoint", "reached.__globals__") == {}


def global_draws(tree: ast.AST) -> list[tuple[int, str]]:
    """Draws from Python's and NumPy's global generators; explicit Generators are fine."""
    allowed = {"Random", "Generator", "Philox", "PCG64", "SeedSequence", "default_rng"}
    return [
        (line, name)
        for line, name in uses(tree, "random", "np.random", "numpy.random")
        if name not in ("random", "np.random", "numpy.random") and not allowed & set(name.split("."))
    ]


def test_nothing_draws_from_the_global_generators() -> None:
    assert global_draws(ast.parse("np.random.rand(3)")) == [(1, "np.random.rand")]
    drawing = {path: found for path, tree in TREES.items() if (found := global_draws(tree))}
    assert set(drawing) <= {"utils/utils_seed.py"}, drawing


def test_nothing_names_cuda_visible_devices() -> None:
    """The launcher and the user own it."""
    for path, tree in TREES.items():
        strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert "CUDA_VISIBLE_DEVICES" not in strings, path


def test_models_and_data_sets_do_not_print() -> None:
    for path, tree in TREES.items():
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if path != "main_train.py" and not path.startswith("main_test"):
            assert "print" not in calls, path


@pytest.mark.parametrize("path", TREES)
def test_every_module_says_what_it_is(path: str) -> None:
    assert ast.get_docstring(TREES[path]) or not TREES[path].body


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table])
def test_every_entry_of_every_table_has_a_docstring_of_its_own(kind: str, name: str) -> None:
    entry = TABLES[kind][name]
    assert entry.__doc__, f"{kind} {name}"
    for base in inspect.getmro(entry)[1:] if inspect.isclass(entry) else ():
        assert entry.__doc__ != base.__doc__, f"{kind} {name} has the docstring of {base.__name__}"


def test_every_table_is_read() -> None:
    assert set(TABLES) == {
        *("model", "network", "loss", "optimizer", "schedule"),
        *("dataset", "fallback", "transform", "metric"),
    }
