"""What a fitted estimator consists of, as plain values and arrays: to be saved, and read with caution."""

from skdiec.state.reading import load_model
from skdiec.state.writing import push_model, save_model

__all__ = ["load_model", "push_model", "save_model"]
