"""Decoders: the bytes of one published file in, one Arrow table of its dataset's schema out. Pure functions, no I/O."""

from tif1_pipeline.decode.laps import concat_laps, decode_driver_laps, decode_session_laps
from tif1_pipeline.decode.schedule import decode_schedule
from tif1_pipeline.decode.session import decode_corners, decode_drivers, decode_messages, decode_weather
from tif1_pipeline.decode.telemetry import TelemetryBuilder, telemetry_schema

__all__ = [
    "TelemetryBuilder",
    "concat_laps",
    "decode_corners",
    "decode_driver_laps",
    "decode_drivers",
    "decode_messages",
    "decode_schedule",
    "decode_session_laps",
    "decode_weather",
    "telemetry_schema",
]
