"""An FHIR server of its own, with made-up data: the other side that the client is tested against.

`python -m pipeline.sandbox` runs it, `process` starts it from Python, `generator` makes the data and `truth`
tells what an export must deliver. It shares no code with the client side and must not import from it.
"""

from __future__ import annotations

from collections.abc import Iterator


def truth(
    seed: int,
    patients: int,
    night: int,
    group: str | None = None,
    *,
    level: str = "group",
    observations_per_patient: int | None = None,
    pad: int = 0,
) -> Iterator[tuple[str, bytes]]:
    """Exactly what a full export must deliver: (resource type, line without its line feed), files in order.

    `group` None means all patients (the group `demo`); `level` is group, patient or system (which adds
    Group). The other options are those of the server. Raises KeyError for an unknown group.
    """
    from pipeline.sandbox.generator.groups import GROUPS
    from pipeline.sandbox.generator.records import group_patients, resources, types_of
    from pipeline.sandbox.generator.wire import encode
    from pipeline.sandbox.generator.world import World

    if group is not None and group not in GROUPS:
        raise KeyError(group)
    world = World(seed, patients, night, observations_per_patient, pad)
    for resource_type in types_of(level):
        for resource in resources(world, resource_type, group_patients(world, group)):
            yield resource_type, encode(resource)
