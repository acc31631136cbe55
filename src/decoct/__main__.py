"""`python -m decoct`, as torchrun and `accelerate launch` start it."""

from decoct.cli.app import main

if __name__ == "__main__":
    main()
