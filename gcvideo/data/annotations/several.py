"""Several labels a video: how the label columns of lists are taken apart."""

from collections import Counter
from collections.abc import Container, Mapping

SEPARATORS = ("|", ";", ",", " ")
LEAST_SHARE = 0.1  # of rows with several labels; fewer are taken for slips


def split_labels(
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
