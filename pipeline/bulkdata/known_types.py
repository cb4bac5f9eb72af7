"""The names of resource types that messages may repeat: FHIR's own, whatever the tables can hold."""

from __future__ import annotations

from functools import cache

_LATER = frozenset(
    {
        "ActorDefinition",
        "AdministrableProductDefinition",
        "ArtifactAssessment",
        "BiologicallyDerivedProductDispense",
        "Citation",
        "ClinicalUseDefinition",
        "ConditionDefinition",
        "DeviceAssociation",
        "DeviceDispense",
        "DeviceUsage",
        "EncounterHistory",
        "EvidenceReport",
        "FormularyItem",
        "GenomicStudy",
        "ImagingSelection",
        "Ingredient",
        "InventoryItem",
        "InventoryReport",
        "ManufacturedItemDefinition",
        "MedicinalProductDefinition",
        "NutritionIntake",
        "NutritionProduct",
        "PackagedProductDefinition",
        "Permission",
        "RegulatedAuthorization",
        "RequestOrchestration",
        "Requirements",
        "SubscriptionStatus",
        "SubscriptionTopic",
        "SubstanceDefinition",
        "TestPlan",
        "Transport",
    }
)
"""Those that R4B and R5 have and R4 has not."""


@cache
def known_types() -> frozenset[str]:
    """The resource types of R4, R4B and R5."""
    from pipeline.tables.definitions import resource_types

    return _LATER | frozenset(resource_types())
