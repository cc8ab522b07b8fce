"""When a profile is taken."""

from dataclasses import dataclass, field


@dataclass
class Schedule:
    """When to profile every layer; the last epoch of a run is always profiled.

    Args:
        start: profile before the first step (the untrained network).
        steps: optimizer steps after which to profile. The tunnel appears early, so a few small numbers tell much.
        every_n_epochs: period in epochs; 0 leaves only ``start``, ``steps`` and the end of training.

    Example:
        >>> schedule = Schedule(steps=[50], every_n_epochs=2)
        >>> schedule.due_within(48, 50), schedule.due_at_epoch(1), schedule.due_at_epoch(2)
        (True, False, True)
    """

    start: bool = True
    steps: list[int] = field(default_factory=list)
    every_n_epochs: int = 1

    def __post_init__(self) -> None:
        if self.every_n_epochs < 0 or any(step < 1 for step in self.steps):
            raise ValueError(
                f"profile.every_n_epochs must be 0 or more and profile.steps 1 or more, "
                f"got every_n_epochs={self.every_n_epochs}, steps={self.steps}"
            )

    def due_within(self, before: int, step: int) -> bool:
        """Whether a profile is due between two counts of optimizer steps; several optimizers count by more than 1."""
        return any(before < due <= step for due in self.steps)

    def due_at_epoch(self, epochs_done: int) -> bool:
        """Whether a profile is due when ``epochs_done`` epochs are complete."""
        return self.every_n_epochs > 0 and epochs_done % self.every_n_epochs == 0
