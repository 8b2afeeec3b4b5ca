"""``python -m frisket`` is ``frisket``."""

from frisket.cli.main import main

if __name__ == "__main__":
    main()
