"""What an FHIR server offers besides: conformance, reads, a small search."""

from __future__ import annotations

from itertools import islice
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.generator.kinds import KINDS, SHARED
from pipeline.sandbox.generator.records import find, patient_number, resources, was_deleted
from pipeline.sandbox.jobs import Jobs
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import FHIR_JSON, Refusal, json_response
from pipeline.sandbox.subset import subset_of
from pipeline.sandbox.tokens import Gate, authorize_type
from pipeline.sandbox.typefilter import accept_query

_LARGEST_PAGE = 1000
_OPERATIONS = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"


class Reads:
    """The endpoints; `fhir_url` is the FHIR base without a final slash, `token_url` None names none."""

    def __init__(
        self, options: Options, fhir_url: str, token_url: str | None, tokens: Gate, jobs: Jobs
    ) -> None:
        self._options = options
        self._fhir = fhir_url
        self._token_url = token_url
        self._tokens = tokens
        self._jobs = jobs

    async def smart_configuration(self, _request: Request) -> Response:
        """`.well-known/smart-configuration`, open to everyone."""
        return json_response(
            {
                "token_endpoint": self._token_url,
                "token_endpoint_auth_methods_supported": ["private_key_jwt"],
                "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
                "grant_types_supported": ["client_credentials"],
                "scopes_supported": ["system/*.rs", "system/*.read"],
                "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
            }
        )

    async def capability_statement(self, _request: Request) -> Response:
        """`metadata`, open to everyone."""
        export = {"name": "export"}
        types: list[dict[str, Any]] = []
        for name in KINDS:
            entry: dict[str, Any] = {
                "type": name,
                "interaction": [{"code": "read"}, {"code": "search-type"}],
                "searchParam": [{"name": "_id", "type": "token"}],
            }
            if name in ("Patient", "Group"):
                entry["operation"] = [{**export, "definition": f"{_OPERATIONS}{name.lower()}-export"}]
            types.append(entry)
        security: dict[str, Any] = {
            "service": [
                {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                            "code": "SMART-on-FHIR",
                        }
                    ]
                }
            ],
        }
        if self._token_url is not None:
            security["extension"] = [
                {
                    "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
                    "extension": [{"url": "token", "valueUri": self._token_url}],
                }
            ]
        statement = {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-01-01",
            "kind": "instance",
            "instantiates": ["http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"],
            "software": {"name": "fhir-export-pipeline sandbox"},
            "implementation": {"description": "Made-up data for demo and tests", "url": self._fhir},
            "fhirVersion": "4.0.1",
            "format": ["json", FHIR_JSON],
            "rest": [
                {
                    "mode": "server",
                    "security": security,
                    "resource": types,
                    "operation": [{**export, "definition": _OPERATIONS + "export"}],
                }
            ],
        }
        return json_response(statement, media_type=FHIR_JSON)

    def read(self, request: Request) -> Response:
        """`{type}/{id}`: the resource as of this night, 410 where it was deleted, 404 where it never was."""
        resource_type = self._type_of(request)
        identifier = request.path_params["id"]
        world = self._options.world(self._jobs.night)
        resource = find(world, resource_type, identifier)
        if resource is None:
            if was_deleted(world, resource_type, identifier):
                raise Refusal(410, "deleted", "The resource was deleted")
            raise Refusal(404, "not-found", f"There is no such {resource_type}")
        version = resource.get("meta", {}).get("versionId", "1")
        return json_response(resource, media_type=FHIR_JSON, headers={"ETag": f'W/"{version}"'})

    def search(self, request: Request) -> Response:
        """`{type}?...`: a searchset of one page, with `link next` where there is more."""
        resource_type = self._type_of(request)
        world = self._options.world(self._jobs.night)
        result = {"_count": "20", "_offset": "0", "_summary": "", "_elements": "", "_format": "json"}
        criteria: list[tuple[str, str]] = []
        for name, value in request.query_params.multi_items():
            if name in result:
                result[name] = value
            else:
                criteria.append((name, value))
        count, offset = _whole("_count", result["_count"]), _whole("_offset", result["_offset"])
        accept = accept_query(resource_type, criteria)
        patients: Any = range(world.patient_count())
        about = [value for name, value in criteria if name in ("patient", "subject")]
        if len(about) == 1 and "," not in about[0] and resource_type not in SHARED:
            number = patient_number(world, about[0].removeprefix("Patient/"))
            patients = [] if number is None else [number]
        matches = resources(world, resource_type, patients, accept=accept)
        one = [value for name, value in criteria if name == "_id"]
        if len(one) == 1 and "," not in one[0]:
            found = find(world, resource_type, one[0])
            matches = iter([found] if found is not None and accept(found) else [])
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"}
        if result["_summary"] == "count":
            return json_response({**bundle, "total": sum(1 for _ in matches)}, media_type=FHIR_JSON)
        if result["_summary"] not in ("", "false"):
            raise Refusal(400, "not-supported", "_summary must be count or false")
        page = list(islice(matches, offset, offset + min(count, _LARGEST_PAGE) + 1))
        own = f"{self._fhir}/{resource_type}"
        bundle["link"] = [{"relation": "self", "url": f"{own}?{request.url.query}"}]
        if len(page) > min(count, _LARGEST_PAGE):
            page.pop()
            query = urlencode([*criteria, *{**result, "_offset": str(offset + len(page))}.items()])
            bundle["link"].append({"relation": "next", "url": f"{own}?{query}"})
        elements = tuple((None, name) for name in result["_elements"].split(",") if name)
        cut = subset_of(resource_type, elements)
        bundle["entry"] = [
            {
                "fullUrl": f"{own}/{resource['id']}",
                "resource": cut(resource) if cut else resource,
                "search": {"mode": "match"},
            }
            for resource in page
        ]
        if not bundle["entry"]:
            del bundle["entry"]
        return json_response(bundle, media_type=FHIR_JSON)

    def _type_of(self, request: Request) -> str:
        scopes = self._tokens.authorize(request)
        resource_type: str = request.path_params["type"]
        if resource_type not in KINDS:
            raise Refusal(404, "not-supported", "This server has no such resource type")
        authorize_type(scopes, resource_type)
        return resource_type


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise Refusal(400, "value", f"{name} must be a whole number")
    return int(text)
