"""The tables: columns with types, units and source names, declared once for decoders, cache, Dagster and docs.

Column names and types are FastF1's, so that code written for it reads these frames unchanged. Arrow types become
``timedelta64[ns]``, ``datetime64[ns]``, categorical, ``boolean`` and float columns in pandas.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pyarrow as pa

DURATION = pa.duration("ns")
DATETIME = pa.timestamp("ns")
CATEGORY = pa.dictionary(pa.int32(), pa.string())
TEXT = pa.string()
FLAG = pa.bool_()
FLOAT = pa.float64()
CHANNEL = pa.float32()
"""Telemetry channels: finer than the sensors at half the bytes; the setting ``telemetry_dtype`` can widen them."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: Name in the table (FastF1's).
        type: Arrow type.
        source: Name in the CDN's JSON; None for columns that are derived.
        unit: Physical unit, where there is one.
        description: What it says.
        required: A row cannot do without it.
    """

    name: str
    type: pa.DataType
    source: str | None = None
    unit: str | None = None
    description: str = ""
    required: bool = False

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with unit and description as metadata."""
        metadata = {"description": self.description} | ({"unit": self.unit} if self.unit else {})
        return pa.field(self.name, self.type, metadata=metadata)


@dataclass(frozen=True)
class Dataset:
    """One kind of table.

    Attributes:
        name: Data type in cache keys and name of the asset.
        level: Whether there is one per session or per season.
        columns: In order.
        description: One sentence.
        file: Name of the CDN's file, where a single one holds it.
        part_by: Column whose values are stored as parts that can be read alone.
        schema_version: Raised when a stored table of the former version must not be read any more.
    """

    name: str
    level: Literal["session", "season"]
    columns: tuple[Column, ...]
    description: str
    file: str | None = None
    part_by: str | None = None
    schema_version: int = 1

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with name and ``schema_version`` as metadata."""
        return pa.schema(
            [column.field for column in self.columns],
            metadata={"dataset": self.name, "schema_version": str(self.schema_version)},
        )

    @cached_property
    def by_source(self) -> dict[str, Column]:
        """Columns by their name in the CDN's JSON."""
        return {column.source: column for column in self.columns if column.source}

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the columns that must not be null."""
        return tuple(column.name for column in self.columns if column.required)


def _c(name: str, type_: pa.DataType, source: str | None, description: str, unit: str | None = None) -> Column:
    return Column(name, type_, source, unit, description)


_WEATHER_VALUES = (
    _c("AirTemp", FLOAT, "wAT", "Air temperature", "°C"),
    _c("Humidity", FLOAT, "wH", "Relative humidity", "%"),
    _c("Pressure", FLOAT, "wP", "Air pressure", "mbar"),
    _c("Rainfall", FLAG, "wR", "Whether it rains"),
    _c("TrackTemp", FLOAT, "wTT", "Track temperature", "°C"),
    _c("WindDirection", FLOAT, "wWD", "Direction the wind comes from", "°"),
    _c("WindSpeed", FLOAT, "wWS", "Wind speed", "m/s"),
)

LAPS = Dataset(
    "laps",
    "session",
    (
        _c("LapTime", DURATION, "time", "Lap time; null where none was set"),
        Column("LapNumber", FLOAT, "lap", None, "Number of the lap, from 1", required=True),
        _c("Compound", CATEGORY, "compound", "Tyre compound: SOFT, MEDIUM, HARD, INTERMEDIATE, WET"),
        _c("Stint", FLOAT, "stint", "Number of the stint, from 1"),
        _c("Sector1Time", DURATION, "s1", "Time in sector 1"),
        _c("Sector2Time", DURATION, "s2", "Time in sector 2"),
        _c("Sector3Time", DURATION, "s3", "Time in sector 3"),
        _c("TyreLife", FLOAT, "life", "Age of the tyres", "laps"),
        _c("Position", FLOAT, "pos", "Position at the end of the lap"),
        _c(
            "TrackStatus", CATEGORY, "status", "Track status codes that occurred in the lap, e.g. 1 clear, 4 safety car"
        ),
        _c("IsPersonalBest", FLAG, "pb", "Whether it was the driver's best lap so far"),
        _c("QualifyingSession", CATEGORY, "qs", "Q1, Q2 or Q3"),
        _c("Time", DURATION, "sesT", "Session time at the end of the lap"),
        Column("Driver", CATEGORY, "drv", None, "Three-letter code of the driver", required=True),
        _c("DriverNumber", TEXT, "dNum", "Car number"),
        _c("PitOutTime", DURATION, "pout", "Session time of leaving the pits"),
        _c("PitInTime", DURATION, "pin", "Session time of entering the pits"),
        _c("Sector1SessionTime", DURATION, "s1T", "Session time at the end of sector 1"),
        _c("Sector2SessionTime", DURATION, "s2T", "Session time at the end of sector 2"),
        _c("Sector3SessionTime", DURATION, "s3T", "Session time at the end of sector 3"),
        _c("SpeedI1", FLOAT, "vi1", "Speed at the first trap", "km/h"),
        _c("SpeedI2", FLOAT, "vi2", "Speed at the second trap", "km/h"),
        _c("SpeedFL", FLOAT, "vfl", "Speed at the finish line", "km/h"),
        _c("SpeedST", FLOAT, "vst", "Speed on the longest straight", "km/h"),
        _c("FreshTyre", FLAG, "fresh", "Whether the tyres were new at the start of the stint"),
        _c("Team", CATEGORY, "team", "Team"),
        _c("LapStartTime", DURATION, "lST", "Session time at the start of the lap"),
        _c("LapStartDate", DATETIME, "lSD", "Moment of the start of the lap", "UTC"),
        _c("Deleted", FLAG, "del", "Whether the stewards deleted the lap"),
        _c("DeletedReason", TEXT, "delR", "Why it was deleted"),
        _c("FastF1Generated", FLAG, "ff1G", "Whether the lap was inferred rather than timed"),
        _c("IsAccurate", FLAG, "iacc", "Whether the lap's times agree with each other"),
        _c("WeatherTime", DURATION, "wT", "Session time of the weather sample"),
        *_WEATHER_VALUES,
        _c("LapTimeSeconds", FLOAT, None, "Lap time", "s"),
    ),
    "One row a lap: times, tyres, positions, flags and the weather of the moment.",
    file="session_laptimes.json",
)

TELEMETRY = Dataset(
    "telemetry",
    "session",
    (
        Column("Driver", CATEGORY, None, None, "Three-letter code of the driver", required=True),
        Column("LapNumber", pa.int32(), None, None, "Number of the lap, from 1", required=True),
        Column("Time", DURATION, "time", None, "Time since the start of the lap, to the millisecond", required=True),
        _c("RPM", CHANNEL, "rpm", "Engine speed", "1/min"),
        _c("Speed", CHANNEL, "speed", "Speed", "km/h"),
        _c("nGear", pa.int16(), "gear", "Gear"),
        _c("Throttle", CHANNEL, "throttle", "Throttle pedal", "%"),
        _c("Brake", FLAG, "brake", "Whether the brake is applied"),
        _c("DRS", pa.int16(), "drs", "DRS status code: 10, 12, 14 open"),
        _c("Distance", CHANNEL, "distance", "Distance since the start of the lap", "m"),
        _c("RelativeDistance", CHANNEL, "rel_distance", "Distance as a share of the lap, 0 to 1"),
        _c("DriverAhead", CATEGORY, "driver_ahead", "Car number of the driver ahead"),
        _c("DistanceToDriverAhead", CHANNEL, "distance_to_driver_ahead", "Gap to the driver ahead", "m"),
        _c("AccelerationX", CHANNEL, "acc_x", "Longitudinal acceleration, as published"),
        _c("AccelerationY", CHANNEL, "acc_y", "Lateral acceleration, as published"),
        _c("AccelerationZ", CHANNEL, "acc_z", "Vertical acceleration, as published"),
        _c("X", CHANNEL, "x", "Position on the map, east", "1/10 m"),
        _c("Y", CHANNEL, "y", "Position on the map, north", "1/10 m"),
        _c("Z", CHANNEL, "z", "Position on the map, height", "1/10 m"),
    ),
    "One row a sample: what the cars' sensors said, about 4 to 8 times a second, for every lap.",
    part_by="Driver",
)

WEATHER = Dataset(
    "weather",
    "session",
    (Column("Time", DURATION, "wT", None, "Session time of the sample", required=True), *_WEATHER_VALUES),
    "One row a minute: the weather at the track.",
    file="weather.json",
)

MESSAGES = Dataset(
    "messages",
    "session",
    (
        Column("Time", DATETIME, "time", "UTC", "Moment of the message", required=True),
        _c("Category", CATEGORY, "cat", "Flag, Drs, SafetyCar, CarEvent, Other"),
        _c("Message", TEXT, "msg", "The message"),
        _c("Status", CATEGORY, "status", "ENABLED, DISABLED, DEPLOYED … for DRS and safety car"),
        _c("Flag", CATEGORY, "flag", "GREEN, YELLOW, DOUBLE YELLOW, RED, BLUE, CLEAR, CHEQUERED"),
        _c("Scope", CATEGORY, "scope", "Track, Sector or Driver"),
        _c("Sector", FLOAT, "sector", "Marshalling sector"),
        _c("RacingNumber", TEXT, "dNum", "Car number the message is about"),
        _c("Lap", FLOAT, "lap", "Lap of the race at that moment"),
    ),
    "One row a race control message.",
    file="rcm.json",
)

DRIVERS = Dataset(
    "drivers",
    "session",
    (
        Column("Driver", TEXT, "driver", None, "Three-letter code", required=True),
        _c("Team", TEXT, "team", "Team"),
        _c("DriverNumber", TEXT, "dn", "Car number"),
        _c("FirstName", TEXT, "fn", "First name"),
        _c("LastName", TEXT, "ln", "Last name"),
        _c("TeamColor", TEXT, "tc", "Team colour, six hex digits"),
        _c("HeadshotUrl", TEXT, "url", "Address of a portrait"),
    ),
    "One row a driver of the session.",
    file="drivers.json",
)

CORNERS = Dataset(
    "corners",
    "session",
    (
        Column("CornerNumber", pa.int64(), "CornerNumber", None, "Number of the corner", required=True),
        _c("X", FLOAT, "X", "Position on the map, east", "1/10 m"),
        _c("Y", FLOAT, "Y", "Position on the map, north", "1/10 m"),
        _c("Angle", FLOAT, "Angle", "Direction in which to set the corner's label", "°"),
        _c("Distance", FLOAT, "Distance", "Distance from the start line", "m"),
        _c("Rotation", FLOAT, "Rotation", "Turn of the map that shows it as television does", "°"),
    ),
    "One row a corner of the circuit.",
    file="corners.json",
)

SESSION_INFO = Dataset(
    "session_info",
    "session",
    (
        Column("Year", pa.int64(), None, None, "Season", required=True),
        Column("RoundNumber", pa.int64(), None, None, "Round; 0 for tests", required=True),
        Column("EventName", TEXT, None, None, "Event", required=True),
        _c("OfficialEventName", TEXT, None, "Event with its sponsors"),
        _c("Country", TEXT, None, "Country"),
        _c("Location", TEXT, None, "Place of the circuit"),
        _c("Circuit", TEXT, None, "Circuit, by its place"),
        Column("SessionType", TEXT, None, None, "Session type", required=True),
        _c("StartDate", pa.timestamp("ns", "UTC"), None, "Scheduled start", "UTC"),
        _c("EventFormat", TEXT, None, "conventional, sprint, sprint_shootout, sprint_qualifying or testing"),
    ),
    "One row: what the session is, where and when.",
)

_SESSION_COLUMNS = tuple(
    column
    for number in range(1, 6)
    for column in (
        _c(f"Session{number}", TEXT, f"session{number}", f"Type of session {number}"),
        _c(f"Session{number}Date", DATETIME, f"session{number}_date", f"Start of session {number}", "local time"),
        _c(f"Session{number}DateUtc", DATETIME, None, f"Start of session {number}", "UTC"),
    )
)

SCHEDULE = Dataset(
    "schedule",
    "season",
    (
        Column("RoundNumber", pa.int64(), "round_number", None, "Round; 0 for tests", required=True),
        _c("Country", TEXT, "country", "Country"),
        _c("Location", TEXT, "location", "Place of the circuit"),
        _c("OfficialEventName", TEXT, "official_event_name", "Event with its sponsors"),
        _c("EventDate", DATETIME, "event_date", "Last day of the event", "local time"),
        Column("EventName", TEXT, "event_name", None, "Event; numbered where two carry one name", required=True),
        _c("GmtOffset", DURATION, "gmt_offset", "Local time minus UTC"),
        _c("EventFormat", TEXT, "event_format", "conventional, sprint, sprint_shootout, sprint_qualifying or testing"),
        *_SESSION_COLUMNS,
        _c("F1ApiSupport", FLAG, "f1_api_support", "Whether timing data exists"),
    ),
    "One row an event of the season.",
)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (SESSION_INFO, DRIVERS, LAPS, TELEMETRY, WEATHER, MESSAGES, CORNERS, SCHEDULE)
}
