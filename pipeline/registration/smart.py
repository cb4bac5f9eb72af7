"""Any other SMART server: what its operator must be told (protocol facts 3, 6, 7)."""

from __future__ import annotations

from pipeline.bulkdata.profiles import profile_of
from pipeline.config import Source
from pipeline.registration.steps import JwkSet, Known, Registration, Step


def registration(source: Source, jwks: JwkSet, known: Known) -> Registration:
    """What to hand over for a client of SMART Backend Services."""
    url = known.jwks_url or source.auth.jku
    kids = ", ".join(str(key.get("kid")) for key in jwks.get("keys", ()))
    metadata = {
        "client_id": source.auth.client_id,
        "grant_types": ["client_credentials"],
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": source.auth.algorithm,
        "scope": source.auth.scope or profile_of(source.profile, source.knobs).scope,
        **({} if url is None else {"jwks_uri": url}),
        "jwks": dict(jwks),
    }
    step = Step(
        "Give this to the server's operator (the names are those of RFC 7591)",
        hand_over=metadata,
        notes=(
            f"The key's id (kid): {kids}. All of it is public.",
            "Servers take the keys as a URL (better: they see new keys by themselves) or pasted in.",
            "The operator may choose the client id: put theirs into auth.client_id.",
            "Ask for the grants that the export needs: reading what is exported, and the $export operation.",
        ),
    )
    return Registration(source.name, source.profile, source.auth.client_id, (step,))
