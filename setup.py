"""Packs the weights into the package; everything else is in setup.cfg.

A mapping of folders to packages in setup.cfg would do so too, but then an editable install hooks into Python's imports,
behind the look at folders: wherever a folder is named alnumpy, as in the one above a clone, that empty one is imported.
"""

import os
import shutil
from glob import glob

from setuptools import Command, setup
from setuptools.command.build import build


class BuildWeights(Command):
    """Copies ``weights/`` to ``alnumpy/pretrained/``; the methods are setuptools' protocol for a step of a build."""

    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def get_source_files(self):
        return sorted(glob("weights/*.h5") + glob("weights/*.md"))

    def get_output_mapping(self):
        folder = os.path.join(self.build_lib, "alnumpy", "pretrained")
        return {os.path.join(folder, os.path.basename(source)): source for source in self.get_source_files()}

    def get_outputs(self):
        return list(self.get_output_mapping())

    def run(self):
        for target, source in {} if self.editable_mode else self.get_output_mapping().items():
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(source, target)


build.sub_commands.append(("build_weights", None))
setup(cmdclass={"build_weights": BuildWeights})
