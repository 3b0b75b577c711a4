"""The errors that alnumpy raises on purpose: one root, one child for each kind of input that can be at fault.

    AlnumpyError
        SpecError           a network's or a preprocessing's description; a ValueError, too
        WeightsError        a weights file
        ImageError          a picture
            ImageMemoryError    a picture for which there is too little memory; a MemoryError, too
        GalleryError        a gallery
        MissingExtraError   a package that is not installed; an ImportError, too
        UnsupportedError    a network with a layer that the compiled kernels do not compute

Besides these, alnumpy lets OSError through where a file cannot be written, and MemoryError; a call that no input could
make right, such as an array of the wrong shape, raises ValueError or TypeError. The command line shows each as one line
on stderr, with a traceback only under --debug.
"""


def printable(text: object) -> str:
    """One line of text, whatever control characters, or bytes that are no text, a file's name may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


class AlnumpyError(Exception):
    """Root of all errors that alnumpy raises for bad input. Its message names the input, the fault and the remedy."""


class SpecError(AlnumpyError, ValueError):
    """A network spec is inconsistent, or outside the sizes that alnumpy accepts."""


class WeightsError(AlnumpyError):
    """A weights file is missing, damaged, of another format, or does not fit its spec."""


class MissingExtraError(AlnumpyError, ImportError):
    """Something was asked for that needs an optional dependency which is not installed."""


class UnsupportedError(AlnumpyError):
    """A network has a layer that no compiled kernel computes. The backend numpy runs every network."""


class ImageError(AlnumpyError):
    """A picture cannot be read or decoded."""

    transient = False  # whether the fault may lie with the machine, so that the same file may be read another time


class ImageMemoryError(ImageError, MemoryError):
    """There is too little memory to decode a picture, which may be in order."""

    transient = True


class GalleryError(AlnumpyError):
    """A gallery is missing, damaged, foreign, in use, or bound to another model or other settings."""
