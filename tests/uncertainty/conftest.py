from blank_figures import blank, drawn

__all__ = ["blank", "drawn"]
