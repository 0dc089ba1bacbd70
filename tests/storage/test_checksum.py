from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.storage.checksum import crc32c


def reference(data: bytes) -> int:
    """Bit by bit, from the definition: reflected polynomial 0x82F63B78, all ones before and after."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_check_value_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283


@settings(deadline=None, max_examples=50)
@given(parts=st.lists(st.binary(max_size=20), max_size=5))
def test_it_is_that_of_the_concatenation(parts):
    assert crc32c(*parts) == reference(b"".join(parts))
    assert crc32c(*map(bytearray, parts)) == crc32c(*map(memoryview, parts)) == crc32c(*parts)


def test_arrays_of_any_type_and_shape():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    readonly = array.copy()
    readonly.flags.writeable = False
    assert crc32c(array) == crc32c(readonly) == crc32c(array.tobytes())
    assert crc32c(np.empty((0, 4))) == 0
