"""`python -m peftkit` is the `peftkit` command."""

from peftkit.cli import main

if __name__ == "__main__":
    main()
