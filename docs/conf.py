"""How sphinx builds the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import re
import sys
from pathlib import Path

from skdiec import __version__

project = "skdiec"
author = "The skdiec developers"
copyright = author  # noqa: A001 - the name that sphinx looks for
version = release = __version__

sys.path.insert(0, str(Path(__file__).parent))  # for gallery_order

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "gallery/*.json", "gallery/*.zip"]

default_role = "literal"  # docstrings name parameters and attributes in single backticks
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections have the types
numpydoc_show_class_members = False  # methods are listed by the template of classes
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "ignore_pattern": r"^quickstart\.py$",  # a script with options, no lesson; the first page shows it
    "within_subsection_order": "gallery_order.Key",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
}

templates_path = ["templates"]
html_theme = "pydata_sphinx_theme"
html_title = "skdiec"
html_theme_options = {"show_prev_next": True, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}


def escape_names(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep names such as n_components_ in shapes from being read as references."""
    lines[:] = [re.sub(r"(?<![`\w])(\w+)_(?=[,)])", r"\1\\_", line) for line in lines]


def link_lessons(app: object, page: str, text: list[str]) -> None:
    """Lead links to the scripts of lessons, which a clone has, to the pages that are made of them."""
    text[0] = re.sub(r"\]\(\.\./examples/(plot_\w+)\.py\)", r"](gallery/\1.rst)", text[0])
    text[0] = text[0].replace("](../examples)", "](gallery/index.rst)")


def setup(app: object) -> None:
    """Connect what sphinx calls."""
    app.connect("source-read", link_lessons)
    app.connect("autodoc-process-docstring", escape_names, priority=900)  # after numpydoc
