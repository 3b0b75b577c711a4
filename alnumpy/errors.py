"""The errors that alnumpy raises on purpose: one root, one child for each kind of input that can be at fault.

    AlnumpyError
        SpecError           the description of a network or of preprocessing; also a ValueError
        WeightsError        a weights file
        ImageError          a picture
            ImageMemoryError    a picture for which there is too little memory; also a MemoryError
        GalleryError        a gallery
        MissingExtraError   a package that is not installed; also an ImportError
        UnsupportedError    a network with a layer that the compiled kernels do not compute

Besides these, alnumpy raises OSError if a file cannot be written, and MemoryError. A wrong call, for example with an
array of the wrong shape, raises ValueError or TypeError. The command line shows each as one line
on stderr, with a traceback only under --debug.
"""


def printable(text: object) -> str:
    """One line of text, even if a file's name holds control characters or bytes that are not text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


class AlnumpyError(Exception):
    """Root of all errors that alnumpy raises for bad input. Its message names the input, the fault and the remedy."""


class SpecError(AlnumpyError, ValueError):
    """A network spec is inconsistent, or outside the sizes that alnumpy accepts."""


class WeightsError(AlnumpyError):
    """A weights file is missing, damaged, of another format, or does not fit its spec."""


class MissingExtraError(AlnumpyError, ImportError):
    """A call needs an optional package that is not installed."""


class UnsupportedError(AlnumpyError):
    """A network has a layer that no compiled kernel computes. The backend numpy runs every network."""


class ImageError(AlnumpyError):
    """A picture cannot be read or decoded."""

    transient = False  # whether the machine may be at fault, so that the same file may be readable later


class ImageMemoryError(ImageError, MemoryError):
    """There is too little memory to decode a picture; the picture itself may be intact."""

    transient = True


class GalleryError(AlnumpyError):
    """A gallery is missing, damaged, foreign, in use, or bound to another model or other settings."""
