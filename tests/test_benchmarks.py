import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
DOCUMENTS = [FOLDER.parent / "README.md", *sorted((FOLDER.parent / "docs").rglob("*.md"))]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def common(benchmark):
    return benchmark("common")


def double(value):
    return 2 * value


def test_a_stopped_run_finds_what_it_measured(common, tmp_path):
    results = common.Results("table", ("method", "seed"), ("acc", "machine"), tmp_path)
    results.add(method="ours", seed=0, acc=0.123456789, machine="a, b")
    results.add(method="ours", seed=1, acc=0.5, machine="")
    again = common.Results("table", ("method", "seed"), ("acc", "machine"), tmp_path)
    assert again.rows == results.rows
    assert again.find(method="ours", seed=0) == [{"method": "ours", "seed": "0", "acc": "0.123457", "machine": "a, b"}]
    assert again.find(method="ours", seed=2) == []
    again.add(method="ours", seed=2, acc=0.7, machine="")
    assert len(common.Results("table", ("method", "seed"), ("acc", "machine"), tmp_path).rows) == 3


def test_means_are_of_the_rows_asked_for(common, tmp_path):
    results = common.Results("table", ("method", "seed"), ("acc",), tmp_path)
    for seed, acc in enumerate([0.5, 0.7, ""]):
        results.add(method="ours", seed=seed, acc=acc)
    results.add(method="theirs", seed=0, acc=0.1)
    assert results.mean("acc", 2, method="ours") == f"0.60 ± {np.std([0.5, 0.7], ddof=1):.2f}"
    assert results.mean("acc", 2, method="theirs") == "0.10"
    assert results.mean("acc", 2, method="nobody") == "-"


def test_rows_and_files_with_other_columns_are_refused(common, tmp_path):
    results = common.Results("table", ("seed",), ("acc",), tmp_path)
    with pytest.raises(ValueError, match="row of table"):
        results.add(seed=0)
    results.add(seed=0, acc=1.0)
    with pytest.raises(ValueError, match="has other columns"):
        common.Results("table", ("seed",), ("nmi",), tmp_path)


def test_tables_replace_what_documents_had_in_their_place(common):
    document = "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results: two -->\n<!-- end -->\n"
    replaced = common.with_table(document, "one", "| new |")
    assert replaced == document.replace("old", "| new |")
    assert common.with_table(document, "three", "| new |") == document


def test_measured_functions_run_in_a_process_of_their_own(common):
    result, seconds, peak = common.in_new_process(double, 21)
    assert result == 42
    assert seconds >= 0
    assert 0 < peak < 100


@pytest.mark.parametrize(
    "name",
    ["ablations", "architectures", "criteria", "files", "fit", "partition", "pretraining", "report", "scale", "search"],
)
def test_tables_are_made_of_the_measured_rows(benchmark, common, name):
    module = benchmark(name)
    written = (FOLDER / "results" / f"{name}.md").read_text()
    assert common.table_text(module.table(module.results_of())) == written.strip()


@pytest.mark.parametrize("name", ["accuracy", "headline"])
def test_tables_of_accuracy_are_made_of_the_measured_rows(benchmark, common, name):
    module = benchmark("accuracy")
    written = (FOLDER / "results" / f"{name}.md").read_text()
    assert common.table_text(module.tables(module.all_results())[name]) == written.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_in_documents_are_those_that_were_measured(common, document):
    text = document.read_text()
    for path in sorted((FOLDER / "results").glob("*.md")):
        assert common.with_table(text, path.stem, path.read_text().strip()) == text


@pytest.mark.parametrize("folder", sorted((FOLDER / "backbones").glob("*/")), ids=lambda path: path.name)
def test_backbones_are_what_their_record_says(folder):
    import hashlib

    from skdiec.backbones import load_backbone

    digest, _, name = (folder / "SHA256SUMS").read_text().strip().partition("  ")
    weights = folder / name
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
    assert weights.stat().st_size <= 20 * 2**20
    backbone = load_backbone(folder)
    recipe = backbone.recipe
    assert recipe["parameters"] == sum(parameter.numel() for parameter in backbone.network.parameters())
    assert len(recipe["loss"]) == recipe["settings"]["epochs"]
    assert recipe["seconds"] > 0
