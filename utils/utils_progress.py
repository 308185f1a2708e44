"""The part of a run's progress that cannot be derived from its iteration: best value, patience, skipped steps."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Progress:
    """Best metric so far, the tests since, the steps skipped just now; saved in every manifest.

    best_iter and last_test_iter are 0 before the first test.
    """

    best_value: float | None = None
    best_iter: int = 0
    num_tests_without_improvement: int = 0
    last_test_iter: int = 0
    num_skipped_in_a_row: int = 0

    def after_test(self, current_iter: int, value: float, mode: Literal["max", "min"]) -> "Progress":
        """Progress after a test that gave `value`; NaN never improves."""
        better = self.best_value is None or (value > self.best_value if mode == "max" else value < self.best_value)
        if better and value == value:
            return Progress(value, current_iter, 0, current_iter, self.num_skipped_in_a_row)
        return dataclasses.replace(
            self,
            num_tests_without_improvement=self.num_tests_without_improvement + 1,
            last_test_iter=current_iter,
        )

    def is_best(self, current_iter: int) -> bool:
        """Whether the test of `current_iter` gave the best value."""
        return current_iter > 0 and self.best_iter == current_iter
