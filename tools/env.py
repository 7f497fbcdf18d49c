"""The same as ``gcvideo env``, for use from a source tree."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gcvideo.cli import main

sys.exit(main(["env", *sys.argv[1:]]))
