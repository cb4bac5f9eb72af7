"""What an export contains: the plan of its files, and the lines of each, made while they are sent."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.sandbox.generator.groups import members
from pipeline.sandbox.generator.kinds import SHARED
from pipeline.sandbox.generator.records import count_by_patient, deletions, resources, types_of
from pipeline.sandbox.generator.wire import line
from pipeline.sandbox.generator.world import World
from pipeline.sandbox.kickoff import ExportRequest
from pipeline.sandbox.outcomes import operation_outcome
from pipeline.sandbox.scopes import Scopes
from pipeline.sandbox.subset import subset_of

_BUNDLE = 50
_CHUNK = 128 * 1024


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file: `kind` is output, deleted or error; `first` .. `last` - 1 the patients of an output file."""

    kind: str
    resource_type: str
    count: int
    first: int = 0
    last: int = 0


def exported_types(request: ExportRequest, scopes: Scopes) -> tuple[str, ...]:
    """The types of an export: those asked for, or all that the scopes cover."""
    return request.types or tuple(name for name in types_of(request.level) if scopes.covers(name))


def patients_of(world: World, request: ExportRequest, first: int, last: int) -> Iterable[int]:
    """Numbers of the patients in first .. last - 1 that the export is about."""
    if request.patients:
        return [number for number in request.patients if first <= number < last]
    if request.group is not None:
        return members(world, request.group, first, last)
    return range(first, last)


def plan(world: World, request: ExportRequest, types: Iterable[str], file_lines: int) -> list[PlannedFile]:
    """All files of an export, none of them empty. It counts, but keeps no resource.

    Files are cut between patients, so one patient with more than `file_lines` lines makes a longer file.
    """
    types = tuple(types)
    files: list[PlannedFile] = []
    for resource_type in types:
        files.extend(_files_of_type(world, request, resource_type, file_lines))
    if request.window.since is not None:
        gone = sum(1 for _ in _deletions(world, request, types))
        if gone:
            files.append(PlannedFile("deleted", "Bundle", -(-gone // _BUNDLE)))
    if request.ignored:
        files.append(PlannedFile("error", "OperationOutcome", len(request.ignored)))
    return files


def _files_of_type(
    world: World, request: ExportRequest, resource_type: str, file_lines: int
) -> Iterator[PlannedFile]:
    everyone = patients_of(world, request, 0, world.patient_count())
    accept = request.filters.accept(resource_type)
    first = count = 0
    for number, lines in count_by_patient(world, resource_type, everyone, request.window, accept):
        if count and count + lines > file_lines:
            yield PlannedFile("output", resource_type, count, first, number)
            first, count = number, 0
        count += lines
    if count:
        yield PlannedFile("output", resource_type, count, first, world.patient_count())


def lines_of(
    world: World, request: ExportRequest, types: Iterable[str], file: PlannedFile
) -> Iterator[bytes]:
    """The lines of a planned file."""
    if file.kind == "error":
        for sentence in request.ignored:
            yield line(operation_outcome("not-supported", sentence, "warning"))
    elif file.kind == "deleted":
        gone = _deletions(world, request, types)
        while batch := list(islice(gone, _BUNDLE)):
            entries = [{"request": {"method": "DELETE", "url": f"{kind}/{key}"}} for kind, key in batch]
            yield line({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    else:
        cut = subset_of(file.resource_type, request.elements)
        patients = () if file.resource_type in SHARED else patients_of(world, request, file.first, file.last)
        accept = request.filters.accept(file.resource_type)
        for resource in resources(world, file.resource_type, patients, request.window, accept):
            yield line(cut(resource) if cut else resource)


def _deletions(world: World, request: ExportRequest, types: Iterable[str]) -> Iterator[tuple[str, str]]:
    return deletions(
        world, types, lambda: patients_of(world, request, 0, world.patient_count()), request.window
    )


def chunks(lines: Iterable[bytes], *, compress: bool) -> Iterator[bytes]:
    """The lines in pieces of about 128 kB, as gzip where asked for."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, 31) if compress else None
    held: list[bytes] = []
    size = 0
    for text in lines:
        held.append(text)
        size += len(text)
        if size >= _CHUNK:
            piece = b"".join(held)
            held, size = [], 0
            packed = deflater.compress(piece) if deflater else piece
            if packed:
                yield packed
    rest = b"".join(held)
    if deflater:
        rest = deflater.compress(rest) + deflater.flush()
    if rest:
        yield rest


def part(pieces: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Bytes start .. stop - 1 of a stream of pieces."""
    position = 0
    for piece in pieces:
        end = position + len(piece)
        if end > start:
            yield piece[max(0, start - position) : stop - position]
        position = end
        if position >= stop:
            return
