"Settings of the site; `tools/docs.py` stages its pages, and calls Sphinx"
project = 'miniai'
author = 'The miniai founders'
copyright = '2026, the miniai founders'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = 'miniai'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
html_show_sourcelink = False
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # it knows tables
myst_enable_extensions = ['dollarmath', 'attrs_block']
myst_heading_anchors = 4
