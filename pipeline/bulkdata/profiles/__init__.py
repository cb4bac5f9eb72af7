"""What differs between kinds of servers: one readable set of knobs each, over one client.

Lives here: the knobs and what they accept, the profiles' values for them, addresses derived from them, and
the documentation's table. May not live here: requests, or rules that hold for every server.
"""

from pipeline.bulkdata.profiles.addresses import default_audience, fhir_base, token_url
from pipeline.bulkdata.profiles.catalogue import PROFILES, profile_of
from pipeline.bulkdata.profiles.profile import Profile
from pipeline.bulkdata.profiles.table import profile_table

__all__ = [
    "PROFILES",
    "Profile",
    "default_audience",
    "fhir_base",
    "profile_of",
    "profile_table",
    "token_url",
]
