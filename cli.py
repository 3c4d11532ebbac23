"""`python cli.py COMMAND` from a checkout: the same as the installed `rs-biformer COMMAND`."""

from rs_biformer.cli import main

raise SystemExit(main())
