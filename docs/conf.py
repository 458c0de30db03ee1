"""Sphinx: `make docs`."""

import os

from neurobench import __version__

project = "neurobench"
author = "the neurobench developers"
copyright = author
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["neurobench.css"]
html_title = f"neurobench {__version__}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = False
# Without a network the pages build all the same, with plain names where links would be.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "mne": ("https://mne.tools/stable", None),
        "nilearn": ("https://nilearn.github.io/stable", None),
        "nibabel": ("https://nipy.org/nibabel", None),
        "pluggy": ("https://pluggy.readthedocs.io/en/stable", None),
    }
    if os.environ.get("NEUROBENCH_DOCS_OFFLINE") != "1"
    else {}
)
