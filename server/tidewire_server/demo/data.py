"""
What the demo sends: hourly temperatures, and records for State.

The files come with the package ``vega_datasets``; they are read where they lie, without importing
it, because importing it imports pandas. With a file of one's own everything is made from that.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from tidewire.errors import InvalidArgument

COLUMNS: Final = ("time", "city", "temperature")
ROWS_LEAST: Final = 10
ROWS_MAX: Final = 100_000
FILE_BYTES_MAX: Final = 16 << 20
CITIES_MAX: Final = 100
RECORDS_MAX: Final = 5_000
SERIES_MAX: Final = 1_000
# Decimal text, so that sums are exact whatever their order.
TEMPERATURE: Final = re.compile(r"-?[0-9]{1,4}(\.[0-9]{1,6})?")
CITY: Final = re.compile(r"[a-z0-9_-]{1,64}")
PACKAGE: Final = "vega_datasets"


class DatasetError(InvalidArgument):
    """The input cannot be used; the message says which row, and what was expected."""


@dataclass(frozen=True, slots=True)
class Reading:
    """
    One row.

    Attributes:
        time: Local time, ``2010-01-31T23:00``.
        city: City as a subject token.
        temperature: Decimal text.
    """

    time: str
    city: str
    temperature: str

    @property
    def day(self) -> str:
        """Day of it, ``2010-01-31``."""
        return self.time[:10]

    @property
    def payload(self) -> str:
        """What is published."""
        return json.dumps({"time": self.time, "temperature": self.temperature})


@dataclass(frozen=True, slots=True)
class Dataset:
    """
    Everything that is sent over one wire.

    Attributes:
        source: Where it is from, for people.
        readings: Rows in the order of their time.
        records: Values of State by key, each written once.
        series: Values of State by key, one after the other.
    """

    source: str
    readings: Sequence[Reading]
    records: Mapping[str, str]
    series: Sequence[tuple[str, str]]

    @property
    def cities(self) -> tuple[str, ...]:
        """Cities, by name."""
        return tuple(sorted({reading.city for reading in self.readings}))


def load(path: Path | None) -> Dataset:
    """
    Read a file with the columns time, city, temperature; ``None`` reads the bundled data.

    Raises:
        DatasetError: The file, or the package with the data, is not there or cannot be used.
    """
    return _bundled() if path is None else _given(path)


def _bundled() -> Dataset:
    temperatures = [
        _reading(f"{city}, row {number}", row["date"], city, row["temp"])
        for city, name in (("seattle", "seattle-temps"), ("san-francisco", "sf-temps"))
        for number, row in enumerate(_package_rows(name), 1)
    ]
    airports = {f"airports/{row['iata']}": json.dumps(row) for row in _package_rows("airports")}
    stocks = [
        (f"stocks/{row['symbol']}", json.dumps({"date": row["date"], "price": row["price"]}))
        for row in _package_rows("stocks")
    ]
    return Dataset(
        f"{PACKAGE}: hourly temperatures, airports, stock prices",
        _in_order(temperatures),
        airports,
        stocks,
    )


def _package_rows(name: str) -> list[dict[str, str]]:
    try:
        found = distribution(PACKAGE).locate_file(f"{PACKAGE}/_data/{name}.csv")
        text = Path(str(found)).read_text("utf-8")
    except (PackageNotFoundError, OSError) as error:
        raise DatasetError(
            f"the demo's data is not installed ({error}): pip install 'tidewire[demo]', or use "
            "--input FILE"
        ) from error
    return list(csv.DictReader(io.StringIO(text)))


def _given(path: Path) -> Dataset:
    readings = _in_order(_parse(path))
    if len(readings) < ROWS_LEAST:
        raise DatasetError(f"{path} has {len(readings)} rows; at least {ROWS_LEAST} are needed")
    cities = {reading.city for reading in readings}
    if len(cities) > CITIES_MAX:
        raise DatasetError(f"{path} has {len(cities)} cities; at most {CITIES_MAX} can be used")
    # Records are written once, under keys of their own; a series writes the same key many times.
    records = {f"readings/{r.city}/{r.time}": r.payload for r in readings[:RECORDS_MAX]}
    series = [(f"latest/{r.city}", r.payload) for r in readings[-SERIES_MAX:]]
    return Dataset(str(path), readings, records, series)


def _parse(path: Path) -> Iterable[Reading]:
    text = _read(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = tuple(reader.fieldnames or ())
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise DatasetError(
                f"{path} has no column {', '.join(missing)}; its first line must name "
                f"{','.join(COLUMNS)}, it is {','.join(header)[:100]!r}"
            )
        for number, row in enumerate(reader, 1):
            if number > ROWS_MAX:
                raise DatasetError(f"{path} has more than {ROWS_MAX} rows")
            where = f"{path}, line {reader.line_num}"
            yield _reading(where, *((row[name] or "").strip() for name in COLUMNS))
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise DatasetError(f"{path} has more than {FILE_BYTES_MAX} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 at byte {error.start}") from error


def _reading(where: str, time: str, city: str, temperature: str) -> Reading:
    try:
        moment = datetime.fromisoformat(time.replace("/", "-"))
    except ValueError:
        raise DatasetError(f"{where}: {time!r} is no time such as 2010-01-31 23:00") from None
    if moment.tzinfo is not None:
        raise DatasetError(f"{where}: {time!r} has an offset; give the city's local time")
    token = re.sub(r"[ .']+", "-", city.lower())
    if not CITY.fullmatch(token):
        raise DatasetError(f"{where}: {city!r} is no city: letters, digits, blanks, - and _")
    if not TEMPERATURE.fullmatch(temperature):
        raise DatasetError(f"{where}: {temperature!r} is no temperature such as -3.5")
    return Reading(moment.isoformat(timespec="minutes"), token, temperature)


def _in_order(readings: Iterable[Reading]) -> Sequence[Reading]:
    return sorted(readings, key=lambda reading: reading.time)
