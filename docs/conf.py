"""The site, built from the root of the project: `sphinx-build -c docs . site`, or `make docs`.

The root is the source, so that a link from one page to another is that between their files, here and on the site.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # from_the_code

project = "rs_biformer"
author = "The rs_biformer contributors"
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/RESULTS.md",
    "data/README.md",
    "docs/**.md",
    "notebooks/*",
]
exclude_patterns = [".*", "build", "demo", "dist", "runs", "site", "tests"]  # what need not be looked through

extensions = ["myst_nb", "sphinx.ext.autodoc", "from_the_code", "sphinx.ext.napoleon"]  # ours before napoleon
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
nb_execution_mode = "off"  # notebooks hold what they print; the tests run them
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "rs_biformer"
html_extra_path = ["start"]  # index.html of the folder leads to docs/index.html
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # a page that is opened as a file may not read others
html_show_sphinx = False
highlight_language = "none"
