import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn import datasets

import skdiec

ROOT = Path(skdiec.__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LESSONS = [path for path in EXAMPLES if path.name.startswith("plot_")]
SCRIPTS = [path for path in EXAMPLES if path not in LESSONS]

SHORTENED = {
    r"\bepochs=\d+": "epochs=1",
    r'"backbone__epochs": \[[\d, ]+\]': '"backbone__epochs": [1, 2]',
    r"\bchannels=\(16, 32\)": "channels=(8, 16)",
    r"\btimestep=\[[\d, ]+\]": "timestep=[25, 50]",
    r"\bbackbone=Pretraining": "n_draws=1, n_init=2, backbone=Pretraining",
    r"\bn_init=2,\n": "\n",
    r"\brange\(150\)": "range(20)",
    r"// 600\b": "// 120",
}


def shortened(text):
    """A lesson with less of everything that takes time: that it runs is tested here, not what it finds."""
    for long, short in SHORTENED.items():
        text = re.sub(long, short, text)
    return text


@pytest.fixture
def few_digits(monkeypatch):
    digits = datasets.load_digits()
    fewer = {name: digits[name][::3] for name in ("data", "images", "target")}
    monkeypatch.setattr(datasets, "load_digits", lambda: type(digits)(**fewer))


def test_lessons_are_listed_in_their_order():
    """Where one is missing from the list, the documentation cannot be built."""
    tree = ast.parse((ROOT / "docs" / "gallery_order.py").read_text())
    listed = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert sorted(listed) == sorted(path.stem.removeprefix("plot_") for path in LESSONS)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson_has_a_title_and_prose_cells(lesson):
    text = lesson.read_text()
    title, underline = ast.get_docstring(ast.parse(text)).splitlines()[:2]
    assert set(underline) == {"="}
    assert len(underline) >= len(title)
    assert "\n# %%\n# " in text


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*clusters have images:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:training collapsed:UserWarning")
def test_lesson_runs(lesson, few_digits, tmp_path, monkeypatch):
    """In this process, where the imports are done. Long texts of whole results are the documentation's to print."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    if "sklearn.callback" in lesson.read_text() or "set_callbacks" in lesson.read_text():
        pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    with pyplot.rc_context({"backend": "agg"}):
        try:
            exec(compile(shortened(lesson.read_text()), str(lesson), "exec"), {"__name__": "__main__"})
        finally:
            pyplot.close("all")
    assert shown


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_tells_of_its_options(script, tmp_path):
    """A whole run takes minutes."""
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
