"""``python -m neurobench``: the same as the command ``neurobench``."""

from neurobench.cli import main

if __name__ == "__main__":
    main()
