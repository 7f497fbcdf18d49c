"""Labels: class names in label order, and what the cells of a label column mean."""

import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal

from gcvideo.errors import DataError, nearest

Kind = Literal["any", "names", "numbers"]

FOLDER = Path(__file__).parent / "class_lists"
PUBLISHED_CLASSES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))
FRONT = re.compile(r"c?(?P<number>\d+)[\s,;:.)]+(?P<name>\S.*)")
BEHIND = re.compile(r"(?P<name>.*\S)[\s,;:]+(?P<number>\d+)")
UNKNOWN = -1
NUMBER = re.compile(r"-?\d+(\.0+)?")
ODD = re.compile(r"nan|[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|\d+([,;| ]\s*\d+)+|\[.*\]", re.IGNORECASE)
NO_LABEL = (
    "is neither a whole number nor one name; leave the cell empty if there is no label, list it in data.classes if it "
    "is a name; if videos have several labels, call the column labels (path,labels), or set model.multi_label=true"
)
TWO_LABELS = "may be the name of class {} or a number; call the column class (for names) or class_id (numbers from 0)"
SEPARATORS = ("|", ";", ",", " ")
LEAST_SHARE = 0.1  # of rows with several labels; fewer are taken for slips


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
        names = _classes_of_json(text) if path.suffix == ".json" else _classes_of_lines(text)
        if not names or len({*names}) < len(names):
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            raise ValueError(f"class {twice[0]!r} appears twice" if twice else "it holds no class names")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable list of classes ({error}); published: {PUBLISHED_CLASSES}") from None
    return tuple(names)


def _classes_of_lines(text: str) -> list[str]:
    """Names without the labels in front of them or behind, which count from 0 or 1, and without a header line.

    Raises:
        ValueError: the lines are in another order than their labels.
    """
    names = [normalize(line.strip()) for line in text.splitlines() if line.strip()]
    for header, pattern in itertools.product((0, 1), (FRONT, BEHIND)):
        found = [match for name in names[header:] if (match := pattern.fullmatch(name))]
        bare, numbers = [match["name"].strip('"') for match in found], [int(match["number"]) for match in found]
        first = min(numbers, default=2)
        counted = first < 2 and sorted(numbers) == list(range(first, first + len(names) - header))
        if counted and len({*bare}) == len(bare) and (not header or re.search("[,;\t]", names[0])):
            if numbers != sorted(numbers):
                raise ValueError("its lines are in another order than its numbers; sort them by number")
            return bare
    return [name[1:-1] if name[:1] == name[-1:] == '"' else name for name in names]


def _classes_of_json(text: str) -> list[str]:
    values = json.loads(text)
    if isinstance(values, dict):  # name -> label; pytorchvideo's file keeps quotes inside the names
        if all(map(str.isdecimal, values)) and not all(str(value).isdecimal() for value in values.values()):
            values = {name: label for label, name in values.items()}
        labels = {int(str(label)): name for name, label in values.items()}
        if sorted(labels) != list(range(len(values))):
            raise ValueError("the labels are not 0, 1, 2 ...")
        values = [labels[label] for label in sorted(labels)]
    if not all(isinstance(name, str) for name in values):
        raise TypeError("it lists other values than names")
    return [normalize(name.strip().strip('"')) for name in values if name.strip()]


def normalize(name: str) -> str:
    """A class name in composed Unicode (NFC): macOS writes the same letters decomposed."""
    return unicodedata.normalize("NFC", name)


def read_labels(
    cells: Counter[str], kind: Kind, several: bool | None, classes: tuple[str, ...] | None, limit: int | None
) -> tuple[dict[str, Any], bool, tuple[str, ...] | None, dict[str, str]]:
    """The labels that the cells of a column name.

    All cells are read one way: as names of classes, or as numbers ("1.0" is 1). Where no classes are known, names are
    sorted into classes. Names that are numbers are compared as such ("001" is 1). "" and "-1" stand for no label.

    Args:
        cells: how many rows have each cell.
        kind: what the labels are; "any" is what most rows have.
        several: whether cells may have several labels, see ``split_cells``.
        classes: class names in label order, where known.
        limit: largest label + 1 that is allowed, where known.

    Returns:
        the number of each cell that has one, -1 where unknown; where cells may have several labels all numbers of a
        cell, rising; whether they may; class names in label order, where known; and why each other cell has none.
    """
    split = split_cells(cells, classes=classes or (), several=several)
    parts = split or {cell: (cell,) for cell in cells}
    counts = Counter(itertools.chain(*(parts[cell] * rows for cell, rows in cells.items())))
    known = {key(name): label for key in (_key, normalize) for label, name in enumerate(classes or ())}
    names = {text: known[name] for text in counts for name in (_key(text), normalize(text)) if name in known}
    numbers = {text: int(float(text)) for text in counts if NUMBER.fullmatch(text)}
    found = dict.fromkeys({"", "-1", "-1.0"} - names.keys(), UNKNOWN)
    why = {}
    for text in counts.keys() - found.keys() - names.keys() - numbers.keys():
        inside = counts.keys() & {*re.split(r"\s*[|;]\s*", text)} - {text}
        if text.lower() == "nan" or (kind == "any" and (inside or ODD.fullmatch(text))):
            why[text] = NO_LABEL
    texts = [text for text in counts if text not in found and text not in why]
    highest = min(limit or 1 << 31, 1 << 31) - 1
    if kind == "any" and all(text in names for text in texts):
        if all(numbers.get(text, math.inf) <= highest for text in texts):
            why |= {text: TWO_LABELS.format(names[text]) for text in texts if names[text] != numbers[text]}
        kind = "names"
    elif kind == "any":
        usual = sum(counts[text] for text in texts if text in numbers) * 2 >= sum(counts[text] for text in texts)
        kind, mixed = ("numbers", "is a name among numbers") if usual else ("names", "is a number among names")
        why |= {text: f"{mixed}; use one kind" for text in texts if (text in numbers) != usual}
    texts = [text for text in texts if text not in why]
    if kind == "names" and classes is None and texts:
        classes = tuple(sorted(set(map(normalize, texts))))
        names = {text: classes.index(normalize(text)) for text in texts}
    for text in texts:
        if kind == "names" and text not in names:
            fix = "; set data.classes to the names in the order of the numbers" if text in numbers else ""
            why[text] = f"is an unknown class{fix or nearest(normalize(text), classes or ())}"
        elif kind == "numbers" and not 0 <= numbers.get(text, -1) <= highest:
            hint = "; if the labels count from 1, subtract 1 from each" if numbers.get(text) == highest + 1 else ""
            why[text] = f"is outside {f'0 to {highest}' if limit else '0, 1, 2 ...'}{hint}"
    found |= {text: (names if kind == "names" else numbers)[text] for text in texts if text not in why}
    reasons = {cell: f"label {text!r} {why[text]}" for cell in cells for text in parts[cell][::-1] if text in why}
    sets = {cell: tuple(sorted({found[text] for text in parts[cell]})) for cell in cells if cell not in reasons}
    several = split is not None
    return {cell: s if several and s != (UNKNOWN,) else s[0] for cell, s in sets.items()}, several, classes, reasons


def split_cells(
    rows: Mapping[str, int], *, classes: Container[str], several: bool | None
) -> dict[str, tuple[str, ...]] | None:
    """The labels in each cell of a column, as ``3,17``, ``jump;run``, ``jump|run``, ``3 17`` or ``[3, 17]``.

    One separator holds for the whole file: the first of ``SEPARATORS`` that occurs between labels.

    Args:
        rows: cell -> how many rows have it.
        classes: names of classes, where known; a cell that is such a name is one label.
        several: whether rows may have several labels; None: where a tenth of the rows and at least two look so: where
            the parts are numbers, or most of them occur in other cells too, as those of ``tie, bow tie`` do not.

    Returns:
        no label for an empty cell; None where each row has one label.
    """
    for separator in SEPARATORS if several is not False else ():
        parts = {cell: _split(cell, separator, classes) for cell in rows}
        long = [cell for cell, labels in parts.items() if len(labels) > 1]
        within = Counter(label for labels in parts.values() for label in set(labels))  # in how many cells
        found = {label for cell in long for label in parts[cell]}
        numbers = all(label.isdecimal() for label in found)
        again = 2 * sum(within[label] > 1 for label in found) >= len(found)
        usual = sum(rows[cell] for cell in long) >= max(2, LEAST_SHARE * sum(rows.values()))
        if long and (numbers or separator != " ") and (several or (usual and (numbers or again))):
            return parts
    return {cell: _split(cell, "\0", classes) for cell in rows} if several and any(rows) else None


def _split(cell: str, separator: str, classes: Container[str]) -> tuple[str, ...]:
    """The labels of a cell; left whole where a number comes twice, as in ``[0 1 0]``, or stands beside unknown, -1."""
    labels = tuple(part.strip(" '\"") for part in cell.strip("[] ").split(separator) if part.strip(" '\""))
    odd = (len({*labels}) < len(labels) and labels[0].isdecimal()) or (len(labels) > 1 and "-1" in labels)
    return (cell,) if odd or cell in classes else labels


def _key(name: str) -> str:
    return str(int(float(name))) if NUMBER.fullmatch(name) else normalize(name)
