"""Notebooks as files: listed, planned, run in parallel, resumed, and their results laid side by side.

``catalog`` reads the notebooks, ``parameters`` and ``plan`` decide what is run with which values, ``jobs`` runs one
notebook (``kernel``: in a kernel of its own, ``monitor``: its memory, time and end), ``batch`` runs many and keeps
them in a folder, ``progress`` shows how far they are, ``saving`` writes outputs back, ``report`` sets them beside the
papers.
"""
