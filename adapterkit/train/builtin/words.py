"""The lexicon of the built-in data sets."""

from __future__ import annotations


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


THINGS = _words("film plot acting ending music hotel room meal service staff book story phone screen game show museum")
GOOD = _words("good great superb lovely brilliant charming delightful excellent pleasant wonderful clever moving")
BAD = _words("bad awful poor dreadful dull horrible terrible boring clumsy tedious weak annoying")
NEGATIONS = _words("not never nobody")
DEGREES = _words("very truly rather quite")

NAMES = _words(
    "Jordan Paris Lincoln Georgia Florence Austin Chelsea Madison Hudson Morgan Wells Ford Chase Baker Kent Lee",
    "Carter Dakota Sydney Victoria Houston Preston Logan Bristol",
)

PEOPLE = _words("tom ann bob eve sam joan max lily")
OBJECTS = _words("ball book key lamp coin hat map bell")
PLACES = _words("paris rome oslo cairo lima delhi tokyo quito")
DRINKS = _words("tea milk coffee juice water cocoa")
JOBS = _words("baker pilot nurse farmer singer judge")

FRAME_WORDS = _words(
    "the was everybody found i did find but and it a an in on of to from with for at is are has had . , ? ! said that",
    "met near lives live works work what where who does drink drinks likes like gave got now so then dr mr inc corp",
    "city north south shares hired joined visited flew left rose fell today yesterday by as because river mayor",
    "spokesman team bought sold owns plays against his her their new old friend came back took seen were been",
    "they once upon time there lost looked under table again",
)

KINDS = (THINGS, GOOD, BAD, NEGATIONS, DEGREES, NAMES, PEOPLE, OBJECTS, PLACES, DRINKS, JOBS)
"""The groups of words that mean the same kind of thing."""


def everything() -> set[str]:
    """Every word that a built-in data set may use."""
    return set(FRAME_WORDS).union(*KINDS)
