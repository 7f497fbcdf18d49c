"""Class names in label order: the user's own list, or that of a published data set."""

import json
from pathlib import Path

from gcvideo.data.annotations.table import normalize
from gcvideo.errors import DataError

FOLDER = Path(__file__).parent / "class_lists"
PUBLISHED_CLASSES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def load_classes(path: str | Path) -> tuple[str, ...]:
    """Class names in label order.

    Args:
        path: a text file with a name a line (numbers in front, as in ``0 abseiling``, are dropped where they count the
            lines from 0 or 1), JSON that maps names to labels or lists names, or the name of a published list:
            ``kinetics400``, ``kinetics600`` or ``kinetics700``.

    Raises:
        DataError: the file is missing, empty, or names a class twice.
    """
    path = FOLDER / f"{path}.txt" if str(path) in PUBLISHED_CLASSES else Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _classes_of_json(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not a readable list of classes ({error}); published: {', '.join(PUBLISHED_CLASSES)}"
        ) from None
    names = [normalize(name) for name in names if name]
    numbers = [name.split(maxsplit=1)[0] for name in names if " " in name]
    if any(numbers == [str(first + i) for i in range(len(names))] for first in (0, 1)):
        names = [name.split(maxsplit=1)[1] for name in names]
    if not names:
        raise DataError(f"{path}: holds no class names")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise DataError(f"{path}: class {twice[0]!r} appears twice")
    return tuple(names)


def _classes_of_json(text: str) -> list[str]:
    values = json.loads(text)
    if isinstance(values, dict):  # name -> label; pytorchvideo's file keeps quotes inside the names
        order = sorted(values, key=lambda name: int(values[name]))
        if [int(values[name]) for name in order] != list(range(len(order))):
            raise ValueError("the labels are not 0, 1, 2 ...")
        values = order
    return [str(name).strip().strip('"') for name in values]
