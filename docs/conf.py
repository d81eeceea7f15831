"""Sphinx settings of the site: `make site` builds it, without network access, into `build/site`."""

import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import gather  # noqa: E402  # it lies beside this file

PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "paperlib"
author = "the authors of paperlib"
version = release = PROJECT["version"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["generated/*.md"]  # parts that pages include
nitpicky = False  # docstrings name types of third-party packages, whose inventories would need the network

# The theme uses the system's fonts and loads nothing from other hosts.
html_theme = "furo"
html_title = "paperlib"
html_static_path = ["_static", str(gather.find_mathjax(distribution("sphinx-mathjax-offline")))]
html_css_files = ["site.css"]
html_extra_path = [str(gather.EXPLORERS)]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00588f", "color-brand-content": "#00588f"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f5", "color-brand-content": "#7cc4f5"},
}

# MathJax lies in a package, so that no page asks another host for it.
mathjax_path = gather.MATHJAX

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Notebooks are shown as they ran; building the site trains nothing.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Docstrings mark code by single backticks.
default_role = "code"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

gather.gather_all()


def setup(app: Sphinx) -> None:
    """Connect what autodoc needs to read our docstrings."""
    app.connect("autodoc-process-docstring", escape_bars, priority=100)


def escape_bars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Escape the bars of an absolute value such as |gamma|, which reStructuredText takes for a substitution."""
    lines[:] = [re.sub(r"\|(\w+)\|", r"\\|\1\\|", line) for line in lines]
