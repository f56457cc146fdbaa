"""python -m guardkeel."""

from guardkeel.cli import main

if __name__ == "__main__":
    main()
