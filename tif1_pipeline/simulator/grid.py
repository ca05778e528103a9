"""Teams and drivers of a season."""

import functools
from dataclasses import dataclass

from tif1_pipeline.simulator.randomness import generator

# Car number, first and last name by the three-letter code.
_DRIVERS = """
VER 1 Max Verstappen|PER 11 Sergio Perez|HAM 44 Lewis Hamilton|RUS 63 George Russell|LEC 16 Charles Leclerc
SAI 55 Carlos Sainz|NOR 4 Lando Norris|PIA 81 Oscar Piastri|ALO 14 Fernando Alonso|STR 18 Lance Stroll
GAS 10 Pierre Gasly|OCO 31 Esteban Ocon|ALB 23 Alexander Albon|SAR 2 Logan Sargeant|TSU 22 Yuki Tsunoda
RIC 3 Daniel Ricciardo|BOT 77 Valtteri Bottas|ZHO 24 Guanyu Zhou|MAG 20 Kevin Magnussen|HUL 27 Nico Hulkenberg
VET 5 Sebastian Vettel|RAI 7 Kimi Räikkönen|GIO 99 Antonio Giovinazzi|GRO 8 Romain Grosjean|KVY 26 Daniil Kvyat
LAT 6 Nicholas Latifi|MSC 47 Mick Schumacher|MAZ 9 Nikita Mazepin|DEV 21 Nyck De Vries|KUB 88 Robert Kubica
VAN 2 Stoffel Vandoorne|ERI 9 Marcus Ericsson|HAR 28 Brendon Hartley|SIR 35 Sergey Sirotkin|BEA 87 Oliver Bearman
ANT 12 Kimi Antonelli|LAW 30 Liam Lawson|HAD 6 Isack Hadjar|DOO 7 Jack Doohan|BOR 5 Gabriel Bortoleto
COL 43 Franco Colapinto|LIN 41 Arvid Lindblad
"""

_COLOURS = {
    "Red Bull Racing": "3671C6", "Mercedes": "27F4D2", "Ferrari": "E80020", "McLaren": "FF8000",
    "Aston Martin": "229971", "Alpine": "0093CC", "Williams": "64C4FF", "Racing Bulls": "6692FF",
    "Kick Sauber": "52E252", "Haas F1 Team": "B6BABD", "Renault": "FFF500", "Racing Point": "F596C8",
    "Force India": "F596C8", "Toro Rosso": "469BFF", "AlphaTauri": "5E8FAA", "Alfa Romeo": "C92D4B",
    "Sauber": "9B0000", "RB": "6692FF", "Audi": "00E701", "Cadillac": "909090",
}  # fmt: skip

# The drivers who started the season, in the order of the teams' strength.
_SEASONS = {
    2018: """Mercedes HAM BOT|Ferrari VET RAI|Red Bull Racing RIC VER|Force India PER OCO|Renault HUL SAI
        |McLaren ALO VAN|Haas F1 Team GRO MAG|Toro Rosso GAS HAR|Sauber LEC ERI|Williams STR SIR""",
    2019: """Mercedes HAM BOT|Ferrari VET LEC|Red Bull Racing VER GAS|McLaren SAI NOR|Renault RIC HUL
        |Toro Rosso KVY ALB|Racing Point PER STR|Alfa Romeo RAI GIO|Haas F1 Team GRO MAG|Williams RUS KUB""",
    2020: """Mercedes HAM BOT|Red Bull Racing VER ALB|McLaren SAI NOR|Racing Point PER STR|Renault RIC OCO
        |Ferrari LEC VET|AlphaTauri GAS KVY|Alfa Romeo RAI GIO|Haas F1 Team GRO MAG|Williams RUS LAT""",
    2021: """Red Bull Racing VER PER|Mercedes HAM BOT|Ferrari LEC SAI|McLaren NOR RIC|Alpine ALO OCO
        |AlphaTauri GAS TSU|Aston Martin VET STR|Williams RUS LAT|Alfa Romeo RAI GIO|Haas F1 Team MSC MAZ""",
    2022: """Red Bull Racing VER PER|Ferrari LEC SAI|Mercedes HAM RUS|Alpine ALO OCO|McLaren NOR RIC
        |Alfa Romeo BOT ZHO|Aston Martin VET STR|Haas F1 Team MAG MSC|AlphaTauri GAS TSU|Williams ALB LAT""",
    2023: """Red Bull Racing VER PER|Mercedes HAM RUS|Ferrari LEC SAI|McLaren NOR PIA|Aston Martin ALO STR
        |Alpine GAS OCO|Williams ALB SAR|AlphaTauri TSU DEV|Alfa Romeo BOT ZHO|Haas F1 Team HUL MAG""",
    2024: """McLaren NOR PIA|Ferrari LEC SAI|Red Bull Racing VER PER|Mercedes HAM RUS|Aston Martin ALO STR
        |Alpine GAS OCO|Haas F1 Team HUL MAG|RB TSU RIC|Williams ALB SAR|Kick Sauber BOT ZHO""",
    2025: """McLaren NOR PIA|Red Bull Racing VER LAW|Ferrari LEC HAM|Mercedes RUS ANT|Williams ALB SAI
        |Racing Bulls TSU HAD|Aston Martin ALO STR|Haas F1 Team OCO BEA|Kick Sauber HUL BOR|Alpine GAS DOO""",
    2026: """Mercedes RUS ANT|McLaren NOR PIA|Ferrari LEC HAM|Red Bull Racing VER HAD|Williams ALB SAI
        |Racing Bulls LAW LIN|Aston Martin ALO STR|Haas F1 Team OCO BEA|Audi HUL BOR|Alpine GAS COL|Cadillac PER BOT""",
}


@dataclass(frozen=True, slots=True)
class Driver:
    """One driver of a season.

    Attributes:
        code: Three letters.
        number: Car number.
        first_name: First name.
        last_name: Last name.
        team: Team as the timing names it.
        colour: The team's colour, six hexadecimal digits.
        pace: Lap time relative to the fastest car's, from 1.0 up.
    """

    code: str
    number: str
    first_name: str
    last_name: str
    team: str
    colour: str
    pace: float


def _read_drivers() -> dict[str, tuple[str, str, str]]:
    people = {}
    for person in _DRIVERS.strip().replace("\n", "|").split("|"):
        code, number, first, last = person.split(" ", 3)
        people[code] = (number, first, last)
    return people


_PEOPLE = _read_drivers()


@functools.lru_cache(maxsize=64)
def drivers_of(year: int, seed: object, count: int | None = None) -> tuple[Driver, ...]:
    """Return a season's drivers, the fastest team first.

    Args:
        year: Season; those without a table have the nearest one's drivers.
        seed: Decides the drivers' pace within and between the teams.
        count: Only so many, one of each team first.
    """
    table = _SEASONS[min(max(year, min(_SEASONS)), max(_SEASONS))]
    rng = generator(seed, year, "pace")
    seats: list[list[Driver]] = [[], []]
    for place, entry in enumerate(table.replace("\n", "").split("|")):
        team, *codes = entry.strip().rsplit(" ", 2)
        # The field is spread over about two percent of a lap time, team mates over a third of one.
        team_pace = 1.0 + 0.0021 * place + rng.uniform(0, 0.001)
        for seat, code in enumerate(codes):
            number, first, last = _PEOPLE[code]
            pace = team_pace + seat * rng.uniform(0.0002, 0.0035)
            seats[seat].append(Driver(code, number, first, last, team, _COLOURS[team], pace))
    if count is None:
        return tuple(driver for pair in zip(*seats, strict=True) for driver in pair)
    return tuple((seats[0] + seats[1])[:count])
