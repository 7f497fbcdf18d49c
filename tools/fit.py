"""The same as ``gcvideo fit``, for use from a source tree."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gcvideo.cli import main

sys.exit(main(["fit", *sys.argv[1:]]))
