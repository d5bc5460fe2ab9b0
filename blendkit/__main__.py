"""`python -m blendkit`."""

from blendkit.cli import main

main()
