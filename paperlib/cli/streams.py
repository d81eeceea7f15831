"""What the commands write to: streams of any encoding, and no lines of other libraries before our own."""

from __future__ import annotations

import codecs
import logging
import sys
import unicodedata
import warnings

PLAIN = {
    "–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "±": "+-", "×": "x", "·": "*", "÷": "/", "≤": "<=", "≥": ">=",
    "≈": "~", "≠": "!=", "→": "->", "←": "<-", "⇒": "=>", "√": "sqrt", "∞": "inf", "∑": "sum", "§": "Section ",
    "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "•": "*", "…": "...", "°": " deg", "µ": "u", "€": "EUR",
    "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "✓": "yes",
    "✗": "no", "█": "#", "▉": "#", "░": ".", "▒": ":", "▓": "#", "│": "|", "─": "-",
}  # fmt: skip
"""ASCII for characters whose Unicode decomposition gives none."""
QUIET_LOGGERS = ("torch.utils.cpp_extension", "torch.distributed.elastic", "matplotlib", "onnxscript", "onnx_ir")
"""Loggers whose warnings speak of the machine, such as of CUDA or of fonts, and help nobody who reads our line."""


def prepare_streams() -> None:
    """Let stdout and stderr write every text: what their encoding lacks is transliterated."""
    codecs.register_error("paperlib-plain", _transliterate)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # a test may have put a plain buffer there
            reconfigure(errors="paperlib-plain")


def quiet_libraries() -> None:
    """Keep warnings of other libraries off stderr, unless Python's `-W` asks for them; errors are still shown."""
    for name in QUIET_LOGGERS:
        # A filter, because torch sets the levels of its loggers again when it is imported.
        logging.getLogger(name).addFilter(_is_error)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"paperlib(\.|$)")


def make_plain(text: str) -> str:
    """Return a text in ASCII: "–" becomes "-", "é" "e", "γ" "gamma"."""
    return "".join(_plain_character(character) for character in text)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _transliterate(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return make_plain(error.object[error.start : error.end]), error.end


def _plain_character(character: str) -> str:
    if character in PLAIN or character.isascii():
        return PLAIN.get(character, character)
    # This separates accents from their letters, and ligatures and superscripts into plain ones.
    decomposed = unicodedata.normalize("NFKD", character)
    if plain := "".join(part for part in decomposed if part.isascii()):
        return plain
    if unicodedata.combining(character):
        return ""
    name = unicodedata.name(character, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        # Unicode spells lambda without its b.
        letter = name.split(" LETTER ")[1].split()[0].lower().replace("lamda", "lambda")
        return letter if character.islower() else letter.capitalize()
    return "?"
