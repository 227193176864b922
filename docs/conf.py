"""Sphinx's settings for `build.py`."""

project = "invbench"
project_copyright = "2026, the invbench authors"
html_title = "invbench"
html_theme = "furo"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
extensions = ["myst_parser"]
highlight_language = "text"  # indented blocks are formulas
