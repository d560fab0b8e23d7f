"""``python -m fl_utils``: the same command as ``fl-notebooks``."""

from fl_utils.runner.cli import main

if __name__ == "__main__":
    main(prog_name="python -m fl_utils")
