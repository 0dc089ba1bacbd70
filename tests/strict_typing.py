"""The checker that jaxtyping's import hook applies to the numerical rooms."""

from beartype import BeartypeConf, beartype

# An int is a float to type checkers and to us (PEP 484), though not to beartype's default.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
