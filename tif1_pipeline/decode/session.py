"""The small files of a session: weather, race control messages, drivers and corners."""

import pyarrow as pa

from tif1_pipeline.datasets import CORNERS, DRIVERS, MESSAGES, WEATHER, Dataset
from tif1_pipeline.decode import columns, parsing
from tif1_pipeline.exceptions import InvalidDataError


def decode_weather(body: bytes) -> pa.Table:
    """Decode ``weather.json``.

    Returns:
        One row a sample; ``WEATHER.schema`` and the file's unknown columns.

    Raises:
        InvalidDataError: The body is not such a file.
    """
    return _decode(body, WEATHER)


def decode_messages(body: bytes) -> pa.Table:
    """Decode ``rcm.json``, the race control messages.

    Returns:
        One row a message; ``MESSAGES.schema`` and the file's unknown columns.

    Raises:
        InvalidDataError: The body is not such a file.
    """
    return _decode(body, MESSAGES)


def decode_corners(body: bytes) -> pa.Table:
    """Decode ``corners.json``.

    Returns:
        One row a corner; ``CORNERS.schema`` and the file's unknown columns.

    Raises:
        InvalidDataError: The body is not such a file.
    """
    return _decode(body, CORNERS)


def _decode(body: bytes, dataset: Dataset) -> pa.Table:
    file = str(dataset.file)
    with parsing.reading(file):
        return columns.build(dataset, parsing.parse_object(body, file), file)


def decode_drivers(body: bytes) -> pa.Table:
    """Decode ``drivers.json``: a list of objects, unlike the other files.

    Returns:
        One row a driver, in the file's order; ``DRIVERS.schema`` and the file's unknown columns.

    Raises:
        InvalidDataError: The body is not such a file.
    """
    file = str(DRIVERS.file)
    with parsing.reading(file):
        drivers = parsing.parse_object(body, file).get("drivers")
        if not isinstance(drivers, list) or not all(isinstance(driver, dict) for driver in drivers):
            raise InvalidDataError(f"{file}: column 'drivers' is no list of objects", file=file, columns=["drivers"])
        if not drivers:
            return DRIVERS.schema.empty_table()
        # Not every object needs to have every key.
        names = dict.fromkeys(name for driver in drivers for name in driver)
        parsing.check_names(names, file)
        return columns.build(DRIVERS, {name: [driver.get(name) for driver in drivers] for name in names}, file)
