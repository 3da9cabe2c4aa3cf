"""
How the documentation is built: ``python -m sphinx -W docs docs/_build``.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import Any

from sphinx.util.nodes import make_refnode

project = "eventbus"
author = "the eventbus authors"
project_copyright = "2026, the eventbus authors"
release = version_of("eventbus")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

# Pages are MyST; what stands in docstrings is reStructuredText. Symbols in single backticks
# become links where they can.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "py:obj"
suppress_warnings: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]

# Examples are copied without their prompts.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"eventbus {release}"


def _keep_sentences(*arguments: Any) -> None:
    _app, what, _name, _object, _options, lines = arguments
    # Napoleon takes what stands before a colon in an attribute's docstring for its type,
    # unless another line comes first; ours are sentences.
    if what in {"attribute", "data", "property"} and lines:
        lines[:0] = ["..", ""]


def _tidy_fields(*arguments: Any) -> None:
    lines = arguments[-1]
    for number, line in enumerate(lines):
        # Signatures have short types; those of attributes come with the modules they are made
        # in, ours among them, which are nobody's business.
        if line.startswith(":vartype "):
            lines[number] = re.sub(r"\b(?:\w+\.)+(?=\w)", "", line)
        # A name that ends in an underscore would be a link to nowhere.
        lines[number] = re.sub(r"^:param (\w+)_:", r":param \1\\_:", lines[number])


def _find_by_simple_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    # A docstring names what stands elsewhere as its module knows it: `HandlerErrors` alone.
    if node.get("refdomain") != "py":
        return None
    known, wanted = env.get_domain("py").objects, f".{node['reftarget']}"
    found = [name for name, its in known.items() if name.endswith(wanted) and not its.aliased]
    if len(found) != 1:
        return None
    its = known[found[0]]
    return make_refnode(app.builder, node["refdoc"], its.docname, its.node_id, content, found[0])


def setup(app: Any) -> None:
    """
    Run before and after napoleon, whose priority is 500.
    """
    app.connect("missing-reference", _find_by_simple_name)
    app.connect("autodoc-process-docstring", _keep_sentences, priority=400)
    app.connect("autodoc-process-docstring", _tidy_fields, priority=600)
