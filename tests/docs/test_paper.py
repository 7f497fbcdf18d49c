"""docs/paper.md says nothing that the pages and tables it points to do not say."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text()
SECTIONS = {text.partition("\n")[0]: text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)}
CLIPS = 240_258 * 196
SPEEDS = {"V100": 16, "H100": 500}  # clips a second of one GPU: quoted, and assumed


def cells(section: str) -> list[list[str]]:
    """Rows of its tables whose first or last cell is `code`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0][:1] == "`" or row[-1][:1] == "`"]


def counted() -> dict[str, tuple[int, float]]:
    """Parameters and GMAC at 8 x 224 x 224 by config, from the page that a test holds to the command."""
    rows = cells((ROOT / "docs" / "complexity.md").read_text())
    return {row[0].strip("`"): (int(row[1].replace(",", "")), float(row[4].split()[0])) for row in rows}


def measured_steps() -> dict[str, float]:
    """Training step over that of the first network, from the benchmark's table."""
    text = (ROOT / "docs" / "benchmark.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| slow_r50")]
    return {f"{row[1].strip()}_8x8": float(row[7]) for row in rows}


@pytest.mark.parametrize("title", [title for title in SECTIONS if title[:2] in ("1.", "2.", "3.", "4.")])
def test_measured_numbers_stand_on_the_pages_that_they_come_from(title: str) -> None:
    section = re.sub(r"```.*?```|`[^`]*`", "", SECTIONS[title], flags=re.DOTALL)
    sources = "".join((ROOT / "docs" / name).read_text() for name in set(re.findall(r"\((\w+\.md)[)#]", section)))
    numbers = re.findall(r"\d+\.\d+", section)
    assert len(numbers) > 3
    assert [number for number in numbers if number not in sources] == []


def test_choices_cost_what_the_table_of_configs_says() -> None:
    known = counted()
    plain = known["baseline"]
    for _, parameters, macs, config in cells(SECTIONS["5. Ratio, position and stages"]):
        params, gmac = known[config.strip("`")]
        assert parameters == f"{params - plain[0]:,}", config
        assert float(macs) == pytest.approx(gmac - plain[1], abs=6e-4), config


def test_cost_follows_from_its_model() -> None:
    known, steps = counted(), measured_steps()
    rows = cells(SECTIONS["What only Kinetics can show"])
    assert {row[0].strip("`") for row in rows} == {
        path.stem for path in (ROOT / "configs/kinetics400").glob("*_8x8.yaml")
    }
    paper = dict.fromkeys(SPEEDS, 0.0)
    for name, macs, step, *hours in rows:
        config = name.strip("`")
        factor = max(1.0, steps[config])
        assert float(macs) == pytest.approx(known[config][1] / known["slow_r50_8x8"][1], abs=6e-4)
        assert float(step) == factor
        for (gpu, speed), (one, eight) in zip(SPEEDS.items(), (hours[:2], hours[2:]), strict=True):
            expected = CLIPS * factor / speed / 3600
            assert float(one.replace(",", "")) == pytest.approx(expected, abs=0.51)
            assert float(eight) == pytest.approx(expected / 8, abs=0.51 if gpu == "V100" else 0.06)
            paper[gpu] += 0 if "_se_" in config else 3 * expected
    assert "14,400 GPU hours on V100, or 461 on H100 (58 hours on 8)" in " ".join(PAGE.split())
    assert (round(paper["V100"], -2), round(paper["H100"]), round(paper["H100"] / 8)) == (14_400, 461, 58)
    recipe = yaml.safe_load((ROOT / "configs/kinetics400/slow_r50_8x8.yaml").read_text())
    assert recipe["train"]["epochs"] * 240_258 == CLIPS
    assert f"{CLIPS:,} clips" in PAGE


def test_quoted_tables_are_those_of_the_package() -> None:
    tables = yaml.safe_load((ROOT / "gcvideo/analysis/paper.yaml").read_text())
    quoted = SECTIONS["Quoted numbers"]
    for params, macs in tables["complexity"].values():
        assert f"| {params:.2f} | {macs:.2f} |" in quoted
    for row in tables["attention"].values():
        values = " | ".join("–" if value is None else f"{value:.3f}" for value in row.values())
        assert f"| {values} |" in quoted
