"""One module per contender of ``benchmarks/simulation.py``; those of other projects run in ``.venv-rivals``."""
