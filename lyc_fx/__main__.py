"""`python -m lyc_fx`: the command line."""

from lyc_fx.cli import main

main()
