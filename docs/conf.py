"""Sphinx settings of the site: `make site` builds it, without network access, into `build/site`."""

import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from pydantic import BaseModel
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

highlight_language = "none"  # blocks without a language are commands

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
nb_render_markdown_format = "myst"  # the default, commonmark, has no tables
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__, model_config"}
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
    app.connect("autodoc-process-docstring", adapt_docstring, priority=100)
    app.connect("autodoc-process-signature", shorten_signature)


def adapt_docstring(app: Sphinx, what: str, name: str, thing: Any, options: object, lines: list[str]) -> None:
    """Escape what reStructuredText or napoleon would misread, and list the options of a class of settings."""
    # |gamma| is an absolute value, no substitution.
    lines[:] = [re.sub(r"\|(\w+)\|", r"\\|\1\\|", line) for line in lines]
    if what == "property" and lines:
        # Napoleon takes what stands before a colon for the type.
        lines[0] = lines[0].replace(": ", " – ")
    if what == "class" and issubclass(thing, BaseModel):
        for field, about in thing.model_fields.items():
            words = " ".join((about.description or "").split())
            lines += ["", f"- `{field}` = `{about.get_default(call_default_factory=True)!r}`: {words}"]


def shorten_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Return the signature that is shown: the options of a class of settings are listed below it."""
    if what == "class" and issubclass(thing, BaseModel):
        return "(*, option=value, …)", None
    return signature, returned
