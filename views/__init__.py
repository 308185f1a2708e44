"""What people see of a task beside its metrics. A task is one class in one file, and one line in VIEWS."""
