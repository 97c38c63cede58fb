"""``python -m grpaint``, as torchrun starts it."""

import sys

from grpaint.cli import main

sys.argv[0] = "grpaint"
main()
