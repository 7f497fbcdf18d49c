"""The same as ``gcvideo test``, for use from a source tree."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gcvideo.cli import main

sys.exit(main(["test", *sys.argv[1:]]))
