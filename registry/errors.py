"""What can go wrong in the registry, drawn once.

RegistryError
├── StoreError            the store did not answer, or refused a write (full disk, say)
│   ├── StoreAwayError    what all machines share takes nothing now; reads go on from a copy
│   └── StoreGoneError    its files were deleted or replaced: this process has no store any more
├── ConflictError         a conditional write lost a race; the registry decides again
├── LockLostError         a write came after its lock had gone to another; nothing was written
├── QuotaError            a namespace holds as many instances as it may, or there is room for none
├── InvalidIdentityError  an application name and id too long, or holding a NUL
└── SourceConflictError   the instance belongs to another source, which alone may change it

"No such instance" is an ordinary answer (``False`` or ``None``), not an error.
"""


class RegistryError(Exception):
    """The base of every error that leaves this package."""


class StoreError(RegistryError):
    """The store failed, and nothing was written that was not written whole before.

    Of a store on another machine it may not be known which: what was asked may have been written,
    or be written yet. The driver's own error is chained as the cause.
    """


class StoreAwayError(StoreError):
    """What all machines share cannot be reached, does not answer, or takes no writes yet."""


class StoreGoneError(StoreError):
    """The store that this process opened is not where it was, and others may have another."""


class ConflictError(RegistryError):
    """A guarded record changed between the read and the conditional write; nothing was written."""


class InvalidIdentityError(RegistryError):
    """An application and id that no store can hold; nothing was written."""

    def __init__(self, limit: int) -> None:
        """State the limit in bytes."""
        super().__init__(
            f"application and instance id together must be at most {limit} bytes, without NUL"
        )


class LockLostError(RegistryError):
    """The lock under which a write was decided is another's by now; nothing was written."""


class QuotaError(RegistryError):
    """There is no room for another instance, or another namespace; nothing was written."""


class SourceConflictError(RegistryError):
    """A source tried to write an instance that another source brought; nothing was written."""

    def __init__(self, app: str, instance_id: str, owner: str) -> None:
        """Name the instance and the source it belongs to."""
        super().__init__(f"{app}/{instance_id} belongs to the source {owner!r}")
        self.app = app
        self.instance_id = instance_id
        self.owner = owner
