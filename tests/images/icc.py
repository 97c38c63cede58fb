"""ICC profiles small enough to read: matrices and curves of our own, packed as the format asks."""

import struct

import numpy as np

# of primaries, by rows, in the connection space (D50)
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
WHITE = (0.96420, 1.0, 0.82491)


def _xyz(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(power):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(power * 256)) + b"\0\0"


def _profile(space, connection, tags):
    """A profile of version 2 with these tags."""
    body, table, begin = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, raw in tags.items():
        table += struct.pack(">4sII", name, begin + len(body), len(raw))
        body += raw + bytes(-len(raw) % 4)
    header = struct.pack(">I4sI4s4s4s", begin + len(body), bytes(4), 0x02100000, b"mntr", space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(value * 65536) for value in WHITE))
    return header.ljust(128, b"\0") + table + body


def rgb(primaries, power):
    """A display's profile: its primaries, and one power for its curves."""
    columns = zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries.T, strict=True)
    tags = {b"wtpt": _xyz(WHITE)} | {name: _xyz(column) for name, column in columns}
    return _profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(power)))


def grey(power):
    """A grey profile: light is the level to a power."""
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(WHITE), b"kTRC": _gamma(power)})


def cmyk():
    """A press whose paper is white, whose black is black and whose other inks are of one middle grey."""
    line, lightness = bytes(range(256)), [255] + [0 if inks & 1 else 118 for inks in range(1, 16)]
    grid = b"".join(bytes((level, 128, 128)) for level in lightness)  # L, a, b of each set of inks
    matrix = struct.pack(">9i", *(round(value) for value in np.eye(3).ravel() * 65536))
    head = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix
    return _profile(b"CMYK", b"Lab ", {b"wtpt": _xyz(WHITE), b"A2B0": head + line * 4 + grid + line * 3})
