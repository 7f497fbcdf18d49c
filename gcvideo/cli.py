"""The ``gcvideo`` command: ``gcvideo train CONFIG``, ``gcvideo test CHECKPOINT`` and so on.

Commands and options stand in ``commands/options.yaml``. Each command is a module with ``run(args) -> int | None``,
which is imported only once its arguments are sound: help needs no torch.
Errors that a user can cause end as one line on stderr and exit code 2.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from gcvideo import __version__, distributed
from gcvideo.arguments import add_options, read_options, require_writable_outputs
from gcvideo.errors import ConfigError, DataError, GcvideoError

PACKAGES = {"benchmark": "gcvideo.benchmark", "analyze": "gcvideo.analysis"}  # of commands with a module a subcommand


class OneLineParser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help shows all\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # so that a name the terminal cannot show stops nothing
    name = " ".join(["gcvideo", *argv[:1]])
    try:
        run, args = _parse(argv)
        require_writable_outputs(args)
        return run(args) or 0
    except GcvideoError as error:
        # Under torchrun every process meets the same mistake in a config or in the data; one line is enough.
        if distributed.is_main() or not isinstance(error, (ConfigError, DataError)):
            print(f"{name}: {error}", file=sys.stderr)
        if distributed.is_main():
            distributed.repeat_after_torchrun(f"{name}: {error}")
        return 2
    except RuntimeError as error:
        device = sys.modules.get("gcvideo.device")
        if device is None or not device.out_of_memory(error):
            raise
        fix = "gcvideo train CONFIG --dry-run finds the largest batch that fits; a test takes test.views_per_batch=1"
        print(f"{name}: no memory is left: {str(error).splitlines()[0]}; {fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        sys.stderr.close()
        return 141
    except OSError as error:  # a full disk, a file that cannot be read
        place = f"{error.filename}: " if error.filename else ""
        print(f"{name}: {place}{error.strerror}; files written before are complete", file=sys.stderr)
        return 2


def commands_below(command: str) -> dict[str, str]:
    """Name and a line of help of each subcommand; of "" those of the commands themselves."""
    found = {tuple(name.split()): options["description"] for name, options in read_options().items()}
    return {words[-1]: about for words, about in found.items() if list(words[:-1]) == command.split()}


def _parse(argv: Sequence[str]) -> tuple[Callable[[argparse.Namespace], int | None], argparse.Namespace]:
    """The function of the command (or of its subcommand) and its arguments."""
    command, about = "", "3D global context networks for video recognition"
    # What the shell makes of `*.mp4` may begin with a dash.
    rest = [f"./{word}" if word.startswith("-") and "." in word and os.path.isfile(word) else word for word in argv]
    while choices := commands_below(command):
        if not rest or rest[0] not in choices:
            parser = OneLineParser(prog=f"gcvideo {command}".strip(), description=about)
            parser.add_argument("--version", action="version", version=f"gcvideo {__version__}")
            title = "commands; COMMAND --help explains one"
            subparsers = parser.add_subparsers(metavar="COMMAND", required=True, title=title)
            for name, text in choices.items():
                subparsers.add_parser(name, help=text)
            parser.parse_args(rest[:1])  # exits: with help, the version or an error
        name = rest.pop(0)
        command, about = f"{command} {name}".strip(), choices[name]
    first = command.split()[0]
    place = f"{PACKAGES[first]}.{name}" if first in PACKAGES else f"gcvideo.commands.{first}"
    parser = OneLineParser(prog=f"gcvideo {command}")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    add_options(parser, command)
    parser.set_defaults(subcommand=name)
    # key=value may stand before, between and after the options; an intermixed parse loses a "--", however.
    parse = parser.parse_args if "--" in rest else parser.parse_intermixed_args
    args = parse(rest)
    return import_module(place).run, args


if __name__ == "__main__":
    sys.exit(main())
