"""How the pages of this checkout become a site with search: `make docs`."""

from importlib import metadata

project = "workqueue-operator"
author = "The workqueue-operator authors"
version = release = metadata.version("workqueue-operator")

# The sources begin at the top of the checkout, so that links between README, chart and docs hold on the site too.
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "charts/*/README.md", "examples/**"]
exclude_patterns = ["docs/site"]

extensions = ["myst_parser", "sphinx_copybutton"]
myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]
highlight_language = "console"

html_theme = "furo"
html_extra_path = ["site"]  # the front door
html_title = f"workqueue-operator {release}"
html_copy_source = False
html_show_copyright = False
