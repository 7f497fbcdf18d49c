"""Class names in label order: the user's own list, or that of a published data set."""

import json
import re
from pathlib import Path

from gcvideo.data.annotations.table import normalize
from gcvideo.errors import DataError

FOLDER = Path(__file__).parent / "class_lists"
FRONT = re.compile(r"c?(?P<number>\d+)[\s,;:.)]+(?P<name>\S.*)")
BEHIND = re.compile(r"(?P<name>.*\S)[\s,;:]+(?P<number>\d+)")
PUBLISHED_CLASSES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def load_classes(path: str | Path) -> tuple[str, ...]:
    """Class names in label order.

    Args:
        path: a text file with a name a line (labels in front, as in ``0 abseiling`` or ``0,abseiling``, or behind are
            dropped where they count the lines from 0 or 1), JSON that maps names to labels or labels to names or lists
            names, or the name of a published list: ``kinetics400``, ``kinetics600`` or ``kinetics700``.

    Raises:
        DataError: the file is missing or empty, names a class twice, or is not sorted by its labels.
    """
    path = FOLDER / f"{path}.txt" if str(path) in PUBLISHED_CLASSES else Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _classes_of_json(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not a readable list of classes ({error}); published: {', '.join(PUBLISHED_CLASSES)}"
        ) from None
    names = [normalize(name) for name in _without_numbers([name for name in names if name], path)]
    if not names:
        raise DataError(f"{path}: holds no class names")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise DataError(f"{path}: class {twice[0]!r} appears twice")
    return tuple(names)


def _without_numbers(names: list[str], path: Path) -> list[str]:
    """Names without the labels in front of them or behind, which count from 0 or 1, and without a header line.

    Raises:
        DataError: the lines are in another order than their labels.
    """
    for pattern, header in ((FRONT, 0), (BEHIND, 0), (FRONT, 1), (BEHIND, 1)):
        found = [match for name in names[header:] if (match := pattern.fullmatch(name))]
        bare, numbers = [match["name"].strip('"') for match in found], [int(match["number"]) for match in found]
        first = min(numbers, default=2)
        counted = first < 2 and sorted(numbers) == list(range(first, first + len(names) - header))
        if counted and len(set(bare)) == len(bare) and (not header or re.search("[,;\t]", names[0])):
            if numbers != sorted(numbers):
                raise DataError(f"{path}: its lines are in another order than its numbers; sort them by number")
            return bare
    return [name[1:-1] if name[:1] == name[-1:] == '"' else name for name in names]


def _classes_of_json(text: str) -> list[str]:
    values = json.loads(text)
    if isinstance(values, dict):  # name -> label; pytorchvideo's file keeps quotes inside the names
        if all(key.isdecimal() for key in values) and not all(str(value).isdecimal() for value in values.values()):
            values = {name: label for label, name in values.items()}
        labels = {name: int(str(label)) for name, label in values.items()}
        values = sorted(labels, key=labels.__getitem__)
        if [labels[name] for name in values] != list(range(len(values))):
            raise ValueError("the labels are not 0, 1, 2 ...")
    if not all(isinstance(name, str) for name in values):
        raise TypeError("it lists other values than names")
    return [name.strip().strip('"') for name in values]
