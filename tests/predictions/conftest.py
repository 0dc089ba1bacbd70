from sample_predictions import make

__all__ = ["make"]
