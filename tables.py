"""TABLES: every name that an option file may use, by kind."""

from data.select_dataset import DATA_TABLES
from models.select_model import MODEL_TABLES
from utils.utils_metrics import METRICS
from utils.utils_table import Table

TABLES: dict[str, Table] = {**MODEL_TABLES, **DATA_TABLES, "metric": METRICS}
