"""The report of a run: one self-contained HTML page, and tables in Markdown.

figures     the numbers in tables and charts, computed from the results
text        numbers and table rows in words
charts      the charts, as SVG
markup      pieces of HTML
sections    one section of the page per scenario
page        the HTML page
markdown    the README's table
"""
