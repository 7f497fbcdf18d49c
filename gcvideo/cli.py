"""The ``gcvideo`` command: ``gcvideo train CONFIG``, ``gcvideo test CHECKPOINT`` and so on.

Each subcommand is a module of ``gcvideo.commands`` with ``add_arguments(parser)`` and ``run(args) -> int | None``; it
is imported only when called. Errors a user can cause end as one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Sequence
from importlib import import_module

from gcvideo import __version__, distributed
from gcvideo.errors import ConfigError, DataError, GcvideoError
from gcvideo.files import require_writable_outputs

COMMANDS = {
    "demo": "make a synthetic action set, train on it, test, and show where everything lies",
    "train": "train a network on videos",
    "test": "multi-view test of a checkpoint: top-1 and top-5",
    "predict": "label videos with a checkpoint",
    "prepare": "make, index, check and transcode data sets",
    "benchmark": "measure cost: parameters, multiply-adds, time, memory",
    "convert": "bring weights from and to other toolkits",
    "export": "write a network as ONNX or as an exported program",
    "analyze": "look inside the attention of a trained network",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    args = _parse(argv)
    try:
        require_writable_outputs(args)
        return import_module(f"gcvideo.commands.{args.command}").run(args) or 0
    except GcvideoError as error:
        # Under torchrun every process meets the same mistake in a config or in the data; one line is enough.
        if distributed.is_main() or not isinstance(error, (ConfigError, DataError)):
            print(f"gcvideo {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"gcvideo {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"gcvideo {args.command}: {place}{error.strerror}; files written before are whole", file=sys.stderr)
        return 2


def _parse(argv: list[str]) -> argparse.Namespace:
    if not argv or argv[0] not in COMMANDS:
        width = max(map(len, COMMANDS))
        parser = argparse.ArgumentParser(
            prog="gcvideo",
            description="3D global context networks for video recognition",
            epilog="commands:\n" + "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--version", action="version", version=f"gcvideo {__version__}")
        parser.add_argument(
            "command", choices=COMMANDS, metavar="COMMAND", help="see below; COMMAND --help explains it"
        )
        return parser.parse_args(argv)
    command = argv[0]
    parser = argparse.ArgumentParser(prog=f"gcvideo {command}", description=COMMANDS[command])
    parser.set_defaults(command=command)
    import_module(f"gcvideo.commands.{command}").add_arguments(parser)  # only the command in hand pays for its imports
    if "--" in argv:  # names that begin with a dash; an intermixed parse loses the mark
        return parser.parse_args(argv[1:])
    try:
        # key=value may stand before, between and after the options.
        return parser.parse_intermixed_args(argv[1:])
    except TypeError:  # the command has commands of its own
        return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
