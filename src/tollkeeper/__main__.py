"""`python -m tollkeeper` is the command `tollkeeper`."""

from tollkeeper.cli import main

if __name__ == "__main__":
    main()
