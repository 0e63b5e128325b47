"""All cases of each protocol, in the order of a run."""

from __future__ import annotations

from conformance.case import Case
from conformance.cases import (
    beyond,
    changing,
    leasing,
    listing,
    native,
    negotiating,
    overriding,
    recorded,
    registering,
    renewing,
    replicating,
    sending,
    spelling,
)

ALL: list[Case] = [
    case
    for subject in (
        registering,
        spelling,
        listing,
        negotiating,
        renewing,
        overriding,
        changing,
        replicating,
        sending,
        leasing,
        recorded,
        beyond,
    )
    for case in subject.catalogue.cases
]
NATIVE: list[Case] = native.catalogue.cases
