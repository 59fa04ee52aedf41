"""What takes a processor: no database in here, so a process that only computes imports nothing else."""

from typing import Any


def render(payload: dict[str, Any]) -> bytes:
    """Give one row of a picture of the Mandelbrot set, a byte for each point: in how many steps it escapes."""
    size = payload["size"]
    y = payload["row"] / size * 2.5 - 1.25
    return bytes(steps(complex(x / size * 3.0 - 2.1, y)) for x in range(size))


def steps(c: complex, most: int = 255) -> int:
    z = 0j
    for number in range(most):
        z = z * z + c
        if abs(z) > 2:
            return number
    return most
