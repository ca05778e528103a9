"""Settings of Sphinx: ``make docs`` builds the pages without network access."""

import re
import sys
import warnings
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402
from tif1_pipeline import __version__  # noqa: E402

warnings.filterwarnings(
    "ignore", message=".*is currently in beta.*"
)  # Dagster's, when its decorators are imported

project = "tif1_pipeline"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated", "images"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_admonition_for_notes = True

html_theme = "furo"
html_title = f"tif1_pipeline {__version__}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"

generate.write(HERE / "_generated")


def _escape_parameters(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Escape the underscore that ends a parameter's name: else it is a reference."""
    lines[:] = [re.sub(r"^:param (\w+)_:", r":param \1\\_:", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Hook in after napoleon."""
    app.connect("autodoc-process-docstring", _escape_parameters, priority=900)
