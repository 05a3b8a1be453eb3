"""The report of a run: one self-contained HTML page, and tables in Markdown.

figures     what the tables and charts show, computed from the results once
charts      the charts, as SVG
page        the HTML page
markdown    the README's table
"""
