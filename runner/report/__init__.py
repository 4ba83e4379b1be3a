"""`lorsa report`: from run directories to tables, tests of differences, and one HTML file.

Read collect.py (which runs), compare.py (which of them may stand beside each other), statistics.py, then tables.py;
render_*.py and html.py only show what is there.
"""
