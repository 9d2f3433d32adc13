"""What the documentation says of the public names, parameters and warnings, and where its links lead."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import skdiec
from skdiec import DiffusionEmbeddedClustering

ROOT = Path(skdiec.__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = ("datasets", "metrics", "naming", "plotting", "report", "scores")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
NAMES = [
    *((skdiec, name) for name in skdiec.__all__ if name not in (*MODULES, "backbones", "__version__")),
    *((importlib.import_module("skdiec.backbones"), name) for name in ("Backbone", "Parts", "register")),
    *((module, name) for module in (importlib.import_module(f"skdiec.{name}") for name in MODULES)
      for name in module.__all__),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda value: getattr(value, "__name__", value))
def test_public_names_are_explained_and_in_the_reference(module, name):
    assert re.search(rf"^   {name}$", (DOCS / "api.rst").read_text(), re.MULTILINE)
    item = getattr(module, name)
    if not inspect.isclass(item) and not inspect.isfunction(item):
        return
    text = inspect.getdoc(item)
    takes = [one for one in inspect.signature(item).parameters if one not in ("args", "kwargs")]
    assert "Parameters\n---" in text or "Attributes\n---" in text or not takes
    assert ">>> " in text, "an example that runs"


def test_every_parameter_has_its_default_and_the_reason_for_it():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+?) \|", (DOCS / "defaults.md").read_text(), re.MULTILINE)
    parameters = inspect.signature(DiffusionEmbeddedClustering).parameters
    assert {name: default for name, default, _ in rows} == {
        name: repr(parameter.default) for name, parameter in parameters.items()
    }
    assert all(reason.strip() for _, _, reason in rows)


def warnings_of(path):
    """The constant text of each warning in a module, in parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warn", "warnings.warn") and node.args:
            message = node.args[0]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            yield [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def test_every_warning_is_explained():
    page = (DOCS / "warnings.md").read_text()
    phrases = re.findall(r'^\| "(.+?)" \|', page, re.MULTILINE)
    found = [parts for path in sorted((ROOT / "skdiec").rglob("*.py")) for parts in warnings_of(path) if parts]
    assert len(found) >= 10
    unexplained = [parts for parts in found if not any(phrase in part for phrase in phrases for part in parts)]
    assert unexplained == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        other = page if not path else (page.parent / path)
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_lines_of_prose_fit_on_a_screen(page):
    """All but tables, code and output."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_say_initial_partition(page):
    """The code calls it a start at some places, which nobody else has to know."""
    assert re.findall(r"\bthe start\b(?! of)|\bstarting partition\b", page.read_text()) == []


def test_every_lesson_is_linked_from_a_page():
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for path in sorted((ROOT / "examples").glob("plot_*.py")):
        assert f"(../examples/{path.name})" in text, path.stem


def test_readme_is_short():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    prose = re.sub(r"<!-- results.*?end -->", "", text, flags=re.DOTALL)
    assert len(prose.split()) < 500


def test_ci_runs_the_command_of_the_readme():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command in (ROOT / "README.md").read_text()


# Families of backbones

PIXELS, LATENTS, PROMPTS = "test_pixel_family", "test_latent_families", "test_prompts"
OWN_FILE = {"DiT over pixels": "test_pixel_transformer"}


def families_of(test):
    """The families that a test runs for, among the values that it is given."""
    given = [mark.args[1] for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return {value[0] if isinstance(value, tuple) else value for values in given for value in values}


def test_every_cell_of_the_families_has_a_test_that_runs_for_its_family():
    page = (DOCS / "families.md").read_text()
    listed = dict(re.findall(r"^(\d+)\. `(test_\w+)`", page, re.MULTILINE))
    assert list(listed) == [str(number) for number in range(1, len(listed) + 1)]
    table = page.partition("## Which test shows what")[2].partition("\n1. ")[0]
    head, *rows = re.findall(r"^\| ([^|]+?) \| (.+) \|$", table, re.MULTILINE)
    assert head[1] == "load | search | fit | predict | save"
    modules = {name: importlib.import_module(name) for name in (PIXELS, LATENTS, PROMPTS, *OWN_FILE.values())}
    kinds, families = modules[PIXELS].KINDS, modules[LATENTS].FAMILIES
    assert sorted(name for name, _ in rows) == sorted([*kinds, *families, *OWN_FILE])
    used = set()
    for name, cells in rows:
        assert len(cells.split(" | ")) == 5
        files = [OWN_FILE[name]] if name in OWN_FILE else [PIXELS] if name in kinds else [LATENTS, PROMPTS]
        for number in re.findall(r"\d+", cells):
            used.add(number)
            found = [getattr(modules[file], listed[number], None) for file in files]
            (test,) = [each for each in found if each is not None]
            # One that is given no families is of the only one whose row it stands in.
            is_alone = [number in re.findall(r"\d+", others) for other, others in rows if other != name]
            assert name in families_of(test) or name in OWN_FILE or not any(is_alone), (name, listed[number])
    assert used == set(listed)


def test_every_test_that_the_page_of_families_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "families.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20
    assert named - there == set()


@pytest.mark.filterwarnings("ignore:training collapsed")
def test_example_of_an_own_family_runs(monkeypatch, tmp_path, planted):
    from skdiec.backbones import families

    monkeypatch.setattr(families, "_FAMILIES", list(families._FAMILIES))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "own_backbone.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20 + 4  # and what trains
    names = {"images": planted()[0]}
    exec(code, names)
    assert type(names["model"].backbone_) is names["MyBackbone"]
    assert names["model"].layers_ == ("down_blocks.0", "mid_block", "up_blocks.0")


def test_gallery_leaves_out_the_script_alone():
    (pattern,) = re.findall(r'"ignore_pattern": r"(.+?)"', (DOCS / "conf.py").read_text())
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert [path.name for path in examples if re.search(pattern, path.name)] == ["quickstart.py"]
