"""Writes digits.csv and diabetes.csv beside this file, from the copies that scikit-learn carries.

    pip install scikit-learn
    python examples/make_data.py

The two files are already in the repository; running this shows where they come from. The same
scikit-learn data gives the same bytes. Sources and licences: examples/README.md.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from sklearn.datasets import load_diabetes, load_digits

HERE = Path(__file__).resolve().parent


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """One header line, then one line per row; UTF-8, commas, "\\n"."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def shortest(value: float) -> str:
    """The shortest decimal that reads back as the same number; whole numbers without a point."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def digits() -> tuple[list[str], list[list[str]]]:
    """1,797 images of 8 x 8 pixels, each 0 (paper) to 16 (ink). Column pRC is row R, column C."""
    source = load_digits()
    header = [f"p{row}{column}" for row in range(8) for column in range(8)]
    rows = [
        [shortest(pixel) for pixel in pixels] + [str(int(label))]
        for pixels, label in zip(source.data, source.target, strict=True)
    ]
    return [*header, "label"], rows


def diabetes() -> tuple[list[str], list[list[str]]]:
    """442 patients, ten measurements in their own units, and how far the illness went in a year."""
    source = load_diabetes(scaled=False)
    rows = [
        [shortest(value) for value in measured] + [shortest(progression)]
        for measured, progression in zip(source.data, source.target, strict=True)
    ]
    return [*source.feature_names, "progression"], rows


if __name__ == "__main__":
    for name, make in (("digits.csv", digits), ("diabetes.csv", diabetes)):
        header, rows = make()
        write_csv(HERE / name, header, rows)
        print(f"{name}: {len(rows)} rows, {len(header)} columns")
