"""`python -m llmcxr`."""

import sys

from llmcxr.cli import main

sys.exit(main())
