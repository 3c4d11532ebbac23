"""`python -m rs_biformer COMMAND`."""

from rs_biformer.cli import main

raise SystemExit(main())
