"""The part of a run's progress that cannot be derived from its iteration: best value, patience, losses so far."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Progress:
    """Best metric so far, the tests since, the steps skipped just now; saved in every manifest.

    best_iter and last_test_iter are 0 before the first test. loss_sum: of the num_losses iterations since that test.
    judged_by: what the best value is of, "<mode> <metric> of <fingerprint of the test data>"; "" if it is not known.
    """

    best_value: float | None = None
    best_iter: int = 0
    num_tests_without_improvement: int = 0
    last_test_iter: int = 0
    num_skipped_in_a_row: int = 0
    loss_sum: float = 0.0
    num_losses: int = 0
    judged_by: str = ""

    @property
    def judged_on(self) -> str:
        """The fingerprint of the test data; "" if it is not known."""
        return self.judged_by.partition(" of ")[2]

    def now_judged_by(self, judged_by: str) -> "Progress":
        """Progress whose next tests are of `judged_by`; what was best and patience begin anew if that has changed."""
        if self.judged_by in ("", judged_by):
            return dataclasses.replace(self, judged_by=judged_by)
        return dataclasses.replace(self, judged_by=judged_by).judged_anew()

    def judged_anew(self) -> "Progress":
        """Progress without a best value, with all patience."""
        return dataclasses.replace(self, best_value=None, best_iter=0, num_tests_without_improvement=0)

    def after_test(self, current_iter: int, value: float, mode: Literal["max", "min"]) -> "Progress":
        """Progress after a test that gave `value`; NaN never improves."""
        tested = dataclasses.replace(self, last_test_iter=current_iter)
        is_better = self.best_value is None or (value > self.best_value if mode == "max" else value < self.best_value)
        if math.isnan(value) or not is_better:
            return dataclasses.replace(tested, num_tests_without_improvement=self.num_tests_without_improvement + 1)
        return dataclasses.replace(tested, best_value=value, best_iter=current_iter, num_tests_without_improvement=0)
