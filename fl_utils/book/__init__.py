"""The book: a static site of all notebooks with their saved outputs, made by ``make book`` and read offline.

Nothing is executed and nothing of ``fl_utils`` beside this folder and the runner's readers is imported: notebooks,
papers, data cards and modules are read as files. :mod:`fl_utils.book.site` puts the rooms together.
"""
