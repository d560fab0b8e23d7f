import socket
import struct
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_utils import wire


@given(length=st.integers(0, 300), number=st.integers(0, 10**6), text=st.text(max_size=20))
def test_a_frame_comes_back_whole(length, number, text):
    vector = torch.randn(length)
    message = b"".join(wire.frame(vector, round=number, client=text))
    header, back = wire.parse(message)
    assert header == {"round": number, "client": text}
    assert torch.equal(back, vector)


def test_counted_bytes_are_those_that_cross_a_socket_and_nothing_is_copied():
    vector = torch.randn(100_000)
    buffers = wire.frame(vector, kind="update")
    near, far = socket.socketpair()
    received = bytearray()

    def read():
        while chunk := far.recv(1 << 16):
            received.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with near:
        for buffer in buffers:
            near.sendall(buffer)
    reader.join(10)
    far.close()
    assert len(received) == wire.size(buffers) == len(buffers[0]) + len(buffers[1]) + 400_000
    assert torch.equal(wire.parse(received)[1], vector)
    vector[0] = 7.0
    assert struct.unpack("<f", buffers[2][:4]) == (7.0,)


MESSAGE = b"".join(wire.frame(torch.ones(3), round=1))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "the prefix alone"),
        (b"HTTP" + MESSAGE[4:], "begins with b'HTTP'"),
        (MESSAGE[:-1], "its prefix announces"),
        (MESSAGE + b"x", "its prefix announces"),
        (wire.PREFIX.pack(wire.MAGIC, 2, 3) + b"{}abc", "float32 values take 4"),
        (wire.PREFIX.pack(wire.MAGIC, 2, 0) + b"[]", "want a JSON object"),
        (wire.PREFIX.pack(wire.MAGIC, 2, 0) + b"{!", "not JSON"),
        (wire.PREFIX.pack(wire.MAGIC, 2**31, 0), "at most"),
    ],
)
def test_what_is_no_message_is_refused(message, reason):
    with pytest.raises(wire.WireError, match=reason):
        wire.parse(message)


def test_only_flat_float32_goes_out():
    with pytest.raises(TypeError, match="float64"):
        wire.frame(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"\(2, 2\)"):
        wire.frame(torch.zeros(2, 2))
