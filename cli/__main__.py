"""`python -m edgekd.cli`: the same as the `edgekd` command."""

from __future__ import annotations

import sys

from edgekd.cli.main import main

sys.exit(main())
