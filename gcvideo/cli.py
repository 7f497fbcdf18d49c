"""The ``gcvideo`` command: ``gcvideo train CONFIG``, ``gcvideo test CHECKPOINT`` and so on.

Each command is a module with ``run(args) -> int | None``. Its options stand in ``commands/options.yaml``, or in a
function ``add_arguments(parser)`` of the module. In place of both it may have ``SUBCOMMANDS``, a table like the one
below. Modules are imported only when called. Errors that a user can cause end as one line on stderr and exit code 2.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from gcvideo import __version__, distributed
from gcvideo.arguments import add_options, require_numbers, require_writable_outputs
from gcvideo.errors import ConfigError, DataError, GcvideoError

# Name -> module and a line of help.
COMMANDS = {
    "demo": ("gcvideo.commands.demo", "make a synthetic action set, train on it, test, and show the results"),
    "fit": ("gcvideo.commands.fit", "make a tested classifier of a folder of videos, and explain every choice"),
    "train": ("gcvideo.commands.train", "train a network on videos"),
    "test": ("gcvideo.commands.test", "multi-view test of a checkpoint: top-1 and top-5"),
    "predict": ("gcvideo.commands.predict", "label videos with a checkpoint"),
    "embed": ("gcvideo.commands.embed", "write feature vectors of videos, their clips or windows"),
    "search": ("gcvideo.commands.search", "find the videos whose feature vectors are nearest"),
    "prepare": ("gcvideo.commands.prepare", "make, download, index, check and transcode data sets"),
    "benchmark": ("gcvideo.benchmark", "measure cost: parameters, multiply-adds, time, memory"),
    "convert": ("gcvideo.commands.convert", "convert weights from and to other toolkits"),
    "export": ("gcvideo.commands.export", "write a network as ONNX or as an exported program"),
    "analyze": ("gcvideo.analysis", "look inside the attention of a trained network"),
    "env": ("gcvideo.commands.env", "print versions, decoders, devices and limits, for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # so that a name the terminal cannot show stops nothing
    run, args = _parse(argv)
    name = f"gcvideo {argv[0]}"
    try:
        require_numbers(args, **getattr(args, "least", {}))
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


def _parse(argv: Sequence[str]) -> tuple[Callable[[argparse.Namespace], int | None], argparse.Namespace]:
    """The function of the command (or of its subcommand) and its arguments."""
    program, about, choices = "gcvideo", "3D global context networks for video recognition", COMMANDS
    # What the shell makes of `*.mp4` may begin with a dash.
    rest = [f"./{word}" if word.startswith("-") and "." in word and os.path.isfile(word) else word for word in argv]
    while True:
        if not rest or rest[0] not in choices:
            _choice_parser(program, about, choices).parse_args(rest[:1])  # exits: with help, the version or an error
        name = rest.pop(0)
        program, about = f"{program} {name}", choices[name][1]
        module = import_module(choices[name][0])
        if not hasattr(module, "SUBCOMMANDS"):
            break
        choices = module.SUBCOMMANDS
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    else:
        add_options(parser, program.removeprefix("gcvideo "))
    try:
        # key=value may stand before, between and after the options; an intermixed parse loses a "--", however.
        parse = parser.parse_args if "--" in rest else parser.parse_intermixed_args
        return module.run, parse(rest)
    except TypeError:  # the command has argparse's own subcommands
        return module.run, parser.parse_args(rest)


def _choice_parser(program: str, about: str, choices: dict[str, tuple[str, str]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--version", action="version", version=f"gcvideo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands; COMMAND --help explains one")
    for name, (_, text) in choices.items():
        commands.add_parser(name, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
