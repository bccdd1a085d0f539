"""Pages that open without a network: HTML and SVG written by hand, in light and dark.

- ``page``: the sheet and its sections; ``table``: in HTML and in Markdown; ``style``: colours and type
- ``scale``: axes, ticks, short numbers; ``svg``: elements
- ``line_plot``: lines with bands; ``whiskers``: means with intervals; ``stacks``: shares in a row
- ``flow``: what became of everything; ``lanes``: who worked when; ``response``: a text by the versions that wrote it
"""
