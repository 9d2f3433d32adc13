import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skdiec

ROOT = Path(skdiec.__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def is_lesson(example):
    return example.name.startswith("plot_")


def test_lessons_have_a_title_and_prose_cells():
    assert EXAMPLES
    for example in filter(is_lesson, EXAMPLES):
        text = example.read_text()
        title, underline = ast.get_docstring(ast.parse(text)).splitlines()[:2]
        assert set(underline) == {"="}, example
        assert len(underline) >= len(title), example
        assert "\n# %%\n# " in text, example


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_runs(example, tmp_path):
    """Lessons run whole; scripts, which take minutes, tell of their options."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    arguments = [] if is_lesson(example) else ["--help"]
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert is_lesson(example) or "usage:" in done.stdout
