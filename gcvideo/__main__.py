"""``python -m gcvideo COMMAND ...``: the same as ``gcvideo COMMAND ...``."""

import sys

from gcvideo.cli import main

sys.exit(main())
