"""`python -m lineas` is the command line."""

from lineas.cli import main

main()
