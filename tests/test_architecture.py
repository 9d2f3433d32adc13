import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import skdiec

PACKAGE = Path(skdiec.__file__).parent
ROOT = PACKAGE.parent
FLOORS = {
    "messages": -1,
    **dict.fromkeys(
        [
            "_callbacks",
            "activations",
            "csv_files",
            "dec",
            "graph",
            "images",
            "metrics",
            "parallel",
            "seeding",
            "storage",
        ],
        0,
    ),
    "backbones": 1,
    "partition": 1,
    "scores": 1,
    **dict.fromkeys(["cluster_number", "features", "sampling", "saving", "search", "training"], 2),
    **dict.fromkeys(["_parameters", "initialization", "passes", "state"], 3),
    "_estimator": 4,
}
LEAVES = {"__main__", "_load", "cli", "datasets", "naming", "plotting", "report"}
LIBRARIES = {
    "__main__": set(),
    "_callbacks": {"sklearn"},
    "_estimator": {"joblib", "numpy", "sklearn", "torch", "tqdm"},
    "_load": set(),
    "_parameters": {"joblib", "numpy", "sklearn", "torch"},
    "_version": set(),
    "activations": {"torch"},
    "backbones": {
        "diffusers",
        "filelock",
        "huggingface_hub",
        "numpy",
        "safetensors",
        "sklearn",
        "torch",
        "tqdm",
        "transformers",
    },
    "cli": {"PIL", "numpy", "pyarrow", "sklearn", "torch", "tqdm", "typer"},
    "cluster_number": {"numpy", "sklearn"},
    "csv_files": set(),
    "datasets": {"PIL", "numpy", "sklearn"},
    "dec": {"torch"},
    "features": {"joblib", "numpy", "torch"},
    "storage": {"numpy"},
    "graph": {"numpy", "pynndescent", "scipy", "sklearn"},
    "partition": {"numpy", "scipy", "sklearn"},
    "images": {"PIL", "numpy"},
    "initialization": {"numpy", "scipy.sparse", "sklearn"},
    "messages": set(),
    "metrics": {"numpy", "scipy", "sklearn"},
    "naming": {"PIL", "numpy", "sklearn"},
    "parallel": {"joblib", "numpy", "sklearn", "threadpoolctl", "torch"},
    "passes": set(),
    "plotting": {"matplotlib", "numpy", "scipy", "sklearn", "umap"},
    "report": {"PIL", "jinja2", "numpy", "scipy", "sklearn"},
    "sampling": {"numpy", "torch"},
    "saving": {"huggingface_hub", "numpy", "safetensors"},
    "scores": {"numpy", "scipy"},
    "search": {"numpy", "scipy", "sklearn"},
    "seeding": {"torch"},
    "skdiec": set(),
    "state": {"numpy", "torch"},
    "training": {"numpy", "scipy.sparse", "sklearn", "torch"},
}
"""What each room may import besides the standard library and skdiec, anywhere in it."""

WHEN_USED = {
    "diffusers",
    "filelock",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "pyarrow",
    "pynndescent",
    "safetensors",
    "tqdm",
    "transformers",
    "umap",
}
"""What is imported inside the functions that need it, so that `import skdiec` is quick."""

FOR_USERS = {"_estimator", "backbones", "metrics", "scores"} | LEAVES - {"__main__", "cli"}
"""Rooms whose functions, and the estimator's methods, users call: all that they take and give has its section. The
command line has its help instead."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module):
    """The room that a module is or lies in; the package itself is called skdiec."""
    return (module.split(".") + module.split("."))[1]


def imported(tree):
    """Every module that a tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in ("skdiec", "scipy"):  # what comes may be a module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES or node.module == "scipy" else "skdiec" for name in names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def rooms_used_by(module):
    names = {name for name in imported(MODULES[module]) if name.split(".")[0] == "skdiec"}
    return {room(name) for name in names} - {room(module)}


def libraries_used_by(tree):
    names = {name for name in imported(tree) if name.split(".")[0] not in {*sys.stdlib_module_names, "skdiec"}}
    return {name if name.startswith("scipy.") else name.split(".")[0] for name in names}


def at_import(tree):
    """A copy of a tree without what does not run when it is imported: functions, and imports for type checkers."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        def visit_If(self, node):
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Strip().visit(ast.parse(ast.unparse(tree)))


def calls_of(tree, *, outside=None):
    """The dotted name of every call, outside of ``with`` blocks over a given one."""
    if outside and isinstance(tree, ast.With):
        managers = [ast.unparse(item.context_expr) for item in tree.items]
        if any(manager.split("(")[0] == outside for manager in managers):
            return
    if isinstance(tree, ast.Call):
        yield ast.unparse(tree.func)
    for child in ast.iter_child_nodes(tree):
        yield from calls_of(child, outside=outside)


# Floors


def test_every_room_has_its_place_and_its_libraries():
    rooms = {room(module) for module in MODULES}
    assert rooms <= {*FLOORS, *LEAVES, "_version", "skdiec"}
    assert set(FLOORS) <= rooms
    assert rooms <= set(LIBRARIES)


@pytest.mark.parametrize("module", MODULES)
def test_rooms_use_lower_floors_only(module):
    name, used = room(module), rooms_used_by(module)
    if name in LEAVES:
        allowed = {*FLOORS, *LEAVES, "_version", "skdiec"} if name in ("__main__", "cli") else {*FLOORS, "_version"}
    elif name == "skdiec":
        allowed = {"_estimator", "_load", "_version", "backbones"}
    elif name == "_version":
        allowed = set()
    else:
        allowed = {"_version", *(other for other, floor in FLOORS.items() if floor < FLOORS[name])}
    assert used <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_rooms_use_their_libraries_only(module):
    allowed = LIBRARIES[room(module)]
    used = libraries_used_by(MODULES[module])
    assert {name for name in used if name not in allowed and name.split(".")[0] not in allowed} == set()


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_when_used(module):
    assert libraries_used_by(at_import(MODULES[module])) & WHEN_USED == set()


def test_importing_the_package_imports_nothing_else():
    """What takes seconds comes with the first name that is used, and the command line speaks before that."""
    tree = at_import(MODULES["skdiec"])
    assert set(imported(tree)) - set(sys.stdlib_module_names) == {"skdiec._version"}


def test_only_backbones_uses_diffusers():
    assert {room(module) for module in MODULES if "diffusers" in libraries_used_by(MODULES[module])} == {"backbones"}


def test_no_library_of_the_table_is_unused():
    used = {room(module): set() for module in MODULES}
    for module, tree in MODULES.items():
        for name in libraries_used_by(tree):
            used[room(module)] |= {name, name.split(".")[0]}
    assert {name: LIBRARIES[name] - used[name] for name in FLOORS} == {name: set() for name in FLOORS}


def test_libraries_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(one for extra in ("cli", "nndescent", "report", "text") for one in extras[extra]),
    ]
    declared = {re.match(r"[\w-]+", requirement).group() for requirement in requirements} - {"skdiec"}
    used = {name.split(".")[0] for room in {*FLOORS, "cli", "report"} for name in LIBRARIES[room]}
    assert {{"PIL": "pillow", "sklearn": "scikit-learn"}.get(name, name) for name in used} == declared


def test_public_modules_are_there_after_the_import_and_the_rest_is_out_of_sight():
    assert set(dir(skdiec)) == {
        "DiffusionEmbeddedClustering",
        "Pretraining",
        "__version__",
        "load",
        "load_backbone",
        "pretrain",
        "backbones",
        "datasets",
        "metrics",
        "naming",
        "plotting",
        "report",
        "scores",
    }
    assert dir(skdiec) == sorted(skdiec.__all__)
    for name in ("backbones", "datasets", "metrics", "naming", "plotting", "report", "scores"):
        assert getattr(skdiec, name).__name__ == f"skdiec.{name}"
    with pytest.raises(AttributeError, match="module 'skdiec' has no attribute 'plumbing'"):
        skdiec.plumbing  # noqa: B018


EXTRAS = ("jinja2", "matplotlib", "pyarrow", "pynndescent", "rich", "transformers", "typer", "umap")


def without_extras(code):
    """Run code in a process that has none of the packages of the extras."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", blocked + code], env=environment, capture_output=True, text=True, check=False
    )


def test_library_is_imported_without_its_extras():
    done = without_extras("import skdiec\nfor name in skdiec.__all__: print(getattr(skdiec, name))\n"
                          "skdiec.DiffusionEmbeddedClustering()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(skdiec.__all__)


def test_command_line_says_what_it_lacks():
    done = without_extras("del sys.modules['typer']; import importlib.util as util; find = util.find_spec\n"
                          "util.find_spec = lambda name, *more: None if name == 'typer' else find(name, *more)\n"
                          "from skdiec.__main__ import main; main()")  # fmt: skip
    assert done.returncode == 1
    assert 'pip install "skdiec[cli]"' in done.stderr


# Manners


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_printed_or_asserted(module):
    assert "print" not in calls_of(MODULES[module])
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(MODULES[module]))


@pytest.mark.parametrize("module", MODULES)
def test_no_global_generator_is_seeded(module):
    global_seeds = re.compile(r"((np|numpy)\.random|random|torch\.cuda)\.(seed|manual_seed|manual_seed_all|set_state)")
    assert [call for call in calls_of(MODULES[module]) if global_seeds.fullmatch(call)] == []
    # Not within fork_rng either: other threads draw from the same generator.
    of_torch = {"torch.manual_seed", "torch.random.manual_seed", "torch.seed", "torch.random.fork_rng"}
    assert of_torch.isdisjoint(calls_of(MODULES[module]))


def test_calls_are_found_where_they_are():
    tree = ast.parse(
        "def f():\n    with torch.random.fork_rng(devices=[]):\n        torch.manual_seed(0)\n    np.random.seed(0)\n"
    )
    assert set(calls_of(tree)) == {"torch.random.fork_rng", "torch.manual_seed", "np.random.seed"}
    assert set(calls_of(tree, outside="torch.random.fork_rng")) == {"np.random.seed"}


def test_type_checker_is_silenced_with_a_code_and_a_reason():
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert "type: ignore" not in line or re.search(r"# type: ignore\[[\w-]+\] # \w", line), (path, line)


# Documentation


def documented():
    """Every public class and function, with the parameters and defaults that its docstring is to explain."""
    for module, tree in MODULES.items():
        yield from _documented(module, tree)


def _documented(module, tree, prefix=""):
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
            continue
        init = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        function = node if isinstance(node, ast.FunctionDef) else init[0] if init else None
        defaults = {}
        if function is not None:
            arguments = function.args
            plain = [*arguments.posonlyargs, *arguments.args]
            pairs = [*zip(plain[::-1], arguments.defaults[::-1], strict=False)]
            pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            named = [*plain, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]
            defaults = {item.arg: None for item in named if item.arg not in ("self", "cls")}
            defaults |= {item.arg: default for item, default in pairs if default is not None}
        decorators = {ast.unparse(item) for item in node.decorator_list}
        is_function = isinstance(node, ast.FunctionDef) and "property" not in decorators
        yield SimpleNamespace(
            name=f"{module}.{prefix}{node.name}",
            doc=ast.get_docstring(node) or "",
            defaults=defaults,
            returns=is_function and ast.unparse(node.returns or ast.Constant(None)) != "None",
            is_called_by_users=is_function
            and room(module) in FOR_USERS
            and not module.startswith("skdiec._estimator.")
            and (prefix in ("", "DiffusionEmbeddedClustering.") or prefix.endswith("Display.")),
        )
        if isinstance(node, ast.ClassDef):
            yield from _documented(module, node, f"{prefix}{node.name}.")


def sections(doc):
    """The text of each section of a docstring, by its title."""
    parts = re.split(r"^([A-Z][a-z]+)\n-{3,}$", doc, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def explained(section):
    """The names that a section of parameters explains."""
    lines = re.findall(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : .*)?$", section, flags=re.MULTILINE)
    return {name.lstrip("*") for line in lines for name in line.split(", ")}


PUBLIC = list(documented())


def test_public_is_found():
    names = {item.name for item in PUBLIC}
    assert {"skdiec._estimator.DiffusionEmbeddedClustering.fit", "skdiec.scores.scott_score"} <= names
    assert explained("\na, beta : int\n    Words : words.\n**c\n") == {"a", "beta", "c"}


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.name)
def test_docstring_has_what_there_is_to_explain(item):
    found = sections(item.doc)
    assert re.match(r".+\.(\n\n|$)", item.doc), "a summary in one line"
    if "Parameters" in found and item.defaults:
        assert explained(found["Parameters"]) == set(item.defaults)
    if "Parameters" in found and item.returns:
        assert {"Returns", "Yields"} & set(found)
    if item.is_called_by_users:
        assert "Parameters" in found or not item.defaults
        assert "Returns" in found or not item.returns


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.name)
def test_documented_defaults_are_those_of_the_signature(item):
    section = sections(item.doc).get("Parameters", "")
    lines = re.findall(r"^(\w+(?:, \w+)*) : .*default=(.+)$", section, flags=re.MULTILINE)
    for names, values in lines:
        names = names.split(", ")
        values = values.split(", ") if len(names) > 1 else [values]
        for name, value in zip(names, values, strict=True):
            if name in item.defaults:
                assert ast.literal_eval(value) == ast.literal_eval(item.defaults[name])


# The version


def test_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "skdiec._version.__version__"}
    files = [ROOT / "pyproject.toml", ROOT / "setup.cfg", *PACKAGE.rglob("*.py")]
    assert [path for path in files if skdiec.__version__ in path.read_text()] == [PACKAGE / "_version.py"]
