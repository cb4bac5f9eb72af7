"""Names, streets and towns in several scripts."""

from __future__ import annotations

from pipeline.sandbox.generator.draws import Draws

FAMILY = (
    "Smith", "García Márquez", "Müller-Lüdenscheidt", "O'Brien", "Nguyễn", "山田", "Иванова", "الحسن",
    "Παπαδόπουλος", "Þorsteinsdóttir", "Łukaszewicz", "शर्मा", "김", "van der Berg", "Nakamura", "Brown",
    "Johansson", "D’Angelo", "Østergård", "Adeyemi",
)  # fmt: skip
GIVEN = (
    "Anna", "José", "Zoë", "太郎", "Ольга", "فاطمة", "Mary-Jane", "Łucja", "Björk", "Ἀλέξανδρος", "प्रिया",
    "민준", "Chidi", "Noëlle", "Ian", "Sofía", "Oğuz", "Eve", "Bartholomew", "Siân",
)  # fmt: skip
STREETS = (
    "Elm Street",
    "Rue de l’Église",
    "Hauptstraße",
    "Calle Mayor",
    "本町通り",
    "Broadway",
    "Ул. Ленина",
)
TOWNS = ("Springfield", "São Paulo", "Zürich", "Kraków", "東京", "Reykjavík", "Boston")
NOTES = (
    'Patient reports feeling "much better" today.',
    "Follow-up in 2 weeks; línea de base estable.",
    "Übelkeit nach Einnahme, sonst unauffällig 👩🏽‍⚕️",
    "患者は元気です。\n次回は来月。",
    "Tab\tseparated \\ backslashed / slashed; separator \u2028 inside.",
    "No known issues 🙂 — discharged home",
)


def full_name(bits: int) -> str:
    """Given and family name as one text, the same that `names` gives for these bits."""
    given, family = names(bits)
    return f"{given} {family}"


def names(bits: int) -> tuple[str, str]:
    """(given, family) for these bits."""
    draws = Draws(bits)
    return draws.pick(GIVEN), draws.pick(FAMILY)
