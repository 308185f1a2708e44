"""The one exception for what the user can mend: wrong options, wrong data, a folder in use; and what it says."""


class UserError(ValueError):
    """The options or the data are wrong; the message says what, where, what is allowed and what to do.

    The entry points print it without a traceback and exit with status 2. The first rank of each machine speaks: the
    others meet it too, or see the same files.
    """


class SampleError(UserError):
    """A sample cannot be read; each rank that draws one says so, because no other knows."""


def check_whole_number(name: str, value: object, low: int, high: int) -> None:
    """UserError unless `value` is an int from `low` to `high`; `name` says of what."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name}: {value!r} is not a whole number from {low:,} to {high:,}")


def check_at_least_one(name: str, value: int) -> None:
    """UserError unless `value` is 1 or more; `name` says of what."""
    if value < 1:
        raise UserError(f"{name}: {value} is not allowed: must be at least 1")


def listing(names: list[str]) -> str:
    """The first three, quoted, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
